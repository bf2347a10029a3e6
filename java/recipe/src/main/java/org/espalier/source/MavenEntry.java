package org.espalier.source;

import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.espalier.InputException;

/**
 * A file inside an artefact of a Maven repository: {@code maven:group:artifact:version!/entry}, with
 * an optional {@code #sha256=…} of the entry's content.
 *
 * @param sha256 64 lower-case hexadecimal digits, or null
 */
public record MavenEntry(
    String group, String artifact, String version, String entry, String sha256) {
  private static final String PREFIX = "maven:";
  private static final String PART = "([A-Za-z0-9_][A-Za-z0-9_.+-]*)";
  private static final Pattern SYNTAX =
      Pattern.compile(
          PREFIX + PART + ":" + PART + ":" + PART + "!/([^#]+)(?:#sha256=([0-9a-fA-F]{64}))?");

  /** Whether the text is meant as such a reference. */
  public static boolean isOne(String text) {
    return text.startsWith(PREFIX);
  }

  /**
   * Reads a reference.
   *
   * @throws InputException if it is not of the form above
   */
  public static MavenEntry parse(String text) {
    Matcher matcher = SYNTAX.matcher(text);
    if (!matcher.matches()) {
      throw new InputException(
          "'" + text + "' is not maven:GROUP:ARTIFACT:VERSION!/ENTRY[#sha256=64 HEX DIGITS]");
    }
    String entry = matcher.group(4);
    for (String part : entry.split("/", -1)) {
      if (part.isEmpty() || part.equals(".") || part.equals("..") || part.indexOf('\\') >= 0) {
        throw new InputException("'" + entry + "' in " + text + " is not the name of an entry");
      }
    }
    for (int i = 1; i <= 3; i++) {
      if (matcher.group(i).contains("..")) {
        throw new InputException("'" + matcher.group(i) + "' in " + text + " is no coordinate");
      }
    }
    String sha256 = matcher.group(5);
    return new MavenEntry(
        matcher.group(1),
        matcher.group(2),
        matcher.group(3),
        entry,
        sha256 == null ? null : sha256.toLowerCase(Locale.ROOT));
  }

  /** The artefact: {@code group:artifact:version}. */
  public String coordinates() {
    return group + ":" + artifact + ":" + version;
  }

  /** The name of the artefact's file. */
  String jarName() {
    return artifact + "-" + version + ".jar";
  }

  /** The artefact's folder in a repository, relative to it. */
  String folder() {
    return group.replace('.', '/') + "/" + artifact + "/" + version;
  }

  /** Another entry of the same artefact, in the folder of this one. */
  public MavenEntry sibling(String name) {
    String folder = entry.substring(0, entry.lastIndexOf('/') + 1);
    return new MavenEntry(group, artifact, version, folder + name, null);
  }

  @Override
  public String toString() {
    return PREFIX + coordinates() + "!/" + entry;
  }
}
