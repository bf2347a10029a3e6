package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import java.util.concurrent.TimeUnit;

/**
 * Which Espalier this is.
 *
 * @param version the version of the artefact
 * @param commit the commit of the source tree that the launcher runs, or of that which an archive was
 *     packed from, with {@code -dirty} where files differ from it; null where there is no repository
 *     or no Git
 */
record Build(String version, String commit) {
  /** The build that runs. */
  static Build current() {
    String version = Build.class.getPackage().getImplementationVersion();
    String commit = headCommit();
    return new Build(
        version == null ? "unpackaged" : version, commit == null ? packedCommit() : commit);
  }

  /** What Maven's profile {@code package} writes into the jar; null in other builds. */
  private static String packedCommit() {
    try (InputStream in = Build.class.getResourceAsStream("git.properties")) {
      if (in == null) {
        return null;
      }
      Properties properties = new Properties();
      properties.load(in);
      return properties.getProperty("git.commit.id.describe");
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static String headCommit() {
    String root = System.getProperty("espalier.root");
    if (root == null || !Files.exists(Path.of(root, ".git"))) {
      return null;
    }
    try {
      Process git =
          new ProcessBuilder(
                  "git",
                  "-C",
                  root,
                  "describe",
                  "--always",
                  "--dirty",
                  "--abbrev=10",
                  "--exclude=*")
              .redirectError(ProcessBuilder.Redirect.DISCARD)
              .start();
      git.getOutputStream().close();
      String text = new String(git.getInputStream().readAllBytes(), StandardCharsets.UTF_8).strip();
      return git.waitFor(5, TimeUnit.SECONDS) && git.exitValue() == 0 ? text : null;
    } catch (IOException e) {
      return null; // no Git on this machine
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return null;
    }
  }

  String describe() {
    return "espalier " + version + (commit == null ? "" : ", commit " + commit);
  }

  ObjectNode toJson() {
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("version", version);
    json.put("commit", commit);
    return json;
  }
}
