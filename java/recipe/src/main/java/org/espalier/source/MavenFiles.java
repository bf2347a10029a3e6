package org.espalier.source;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.ZipEntry;
import java.util.zip.ZipException;
import java.util.zip.ZipFile;
import javax.xml.stream.XMLInputFactory;
import javax.xml.stream.XMLStreamConstants;
import javax.xml.stream.XMLStreamException;
import javax.xml.stream.XMLStreamReader;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.NearNames;
import org.espalier.format.Quantity;
import org.espalier.format.Sha256;

/**
 * Gets artefacts through the user's own Maven, with its repositories, mirrors, proxies and
 * credentials, and keeps the entries that were asked for in {@code $XDG_CACHE_HOME/espalier} (by
 * default {@code ~/.cache/espalier}). What lies in the local repository already starts no Maven.
 */
public final class MavenFiles {
  /** The version that the build uses, so that a machine that built has it. */
  private static final String COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy";

  /** Above what any single model file has; a lying archive must not fill the disk. */
  private static final long MAX_ENTRY = 64L << 30;

  private static final Pattern COLOUR = Pattern.compile("\u001b\\[[0-9;]*m");

  private static final Pattern REPOSITORY_OPTION =
      Pattern.compile("-Dmaven\\.repo\\.local=(?:\"([^\"]+)\"|'([^']+)'|(\\S+))");

  private final Path cache;
  private final List<Path> repositories;
  private final Consumer<String> notes;

  /**
   * @param notes receives a line for people about each artefact
   */
  public MavenFiles(Consumer<String> notes) {
    this(cacheFolder(), repositories(), notes);
  }

  MavenFiles(Path cache, List<Path> repositories, Consumer<String> notes) {
    this.cache = cache;
    this.repositories = repositories;
    this.notes = notes;
  }

  /**
   * The file of an artefact.
   *
   * @throws InputException if Maven cannot resolve it
   */
  public Path jar(MavenEntry wanted) {
    Path jar = find(wanted);
    if (jar != null) {
      return jar;
    }
    Path folder = cache.resolve("maven").resolve(wanted.folder());
    notes.accept("getting " + wanted.coordinates() + " with Maven");
    copyWithMaven(wanted, folder);
    Path inRepository = findIn(repositories, wanted);
    Path copied = folder.resolve(wanted.jarName());
    try {
      if (inRepository != null) {
        Files.deleteIfExists(copied); // one copy is enough
        return inRepository;
      }
    } catch (IOException e) {
      throw new InputException("cannot delete " + copied + ": " + e.getMessage(), e);
    }
    if (!Files.isRegularFile(copied)) {
      throw new InputException(
          "Maven resolved " + wanted.coordinates() + " but not as the file " + wanted.jarName());
    }
    return copied;
  }

  private Path find(MavenEntry wanted) {
    List<Path> places = new ArrayList<>(repositories);
    places.add(cache.resolve("maven"));
    return findIn(places, wanted);
  }

  private static Path findIn(List<Path> places, MavenEntry wanted) {
    for (Path place : places) {
      Path jar = place.resolve(wanted.folder()).resolve(wanted.jarName());
      if (Files.isRegularFile(jar)) {
        return jar;
      }
    }
    return null;
  }

  private void copyWithMaven(MavenEntry wanted, Path folder) {
    makeFolder(folder);
    try {
      Process maven =
          new ProcessBuilder(
                  "mvn",
                  "-B",
                  "-q",
                  "-U", // it may be there by now: Maven remembers for a day that it was not
                  COPY,
                  "-Dartifact=" + wanted.coordinates(),
                  "-DoutputDirectory=" + folder,
                  "-Dmdep.overWriteReleases=true")
              .directory(folder.toFile()) // away from a project that may lie in the caller's folder
              .redirectErrorStream(true)
              .redirectInput(ProcessBuilder.Redirect.from(new File("/dev/null")))
              .start();
      String log;
      try {
        log = new String(maven.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        maven.waitFor();
      } finally {
        maven.destroy();
      }
      if (maven.exitValue() != 0) {
        throw new InputException(
            "Maven cannot get " + wanted.coordinates() + ": " + firstError(log));
      }
    } catch (IOException e) {
      throw new InputException(
          "cannot get " + wanted.coordinates() + " with Maven (mvn): " + e.getMessage(), e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new InputException("interrupted while Maven got " + wanted.coordinates(), e);
    }
  }

  /** What went wrong by Maven's log, which may begin a line with colours of the terminal. */
  static String firstError(String log) {
    String plain = COLOUR.matcher(log).replaceAll("").strip();
    return plain
        .lines()
        .filter(line -> line.startsWith("[ERROR] "))
        .map(line -> line.substring(8).replaceFirst(" -> \\[Help \\d+]$", ""))
        .findFirst()
        .orElse(plain.isEmpty() ? "it says nothing" : plain);
  }

  /**
   * A file with the content of an entry, under the entry's own name.
   *
   * @throws InputException if the artefact cannot be had or lacks the entry, or its content is not
   *     what {@code #sha256} promises
   */
  public Path file(MavenEntry wanted) {
    Path jar = jar(wanted);
    Path target = cache.resolve("entries").resolve(wanted.folder()).resolve(wanted.entry());
    try (ZipFile zip = new ZipFile(jar.toFile())) {
      ZipEntry entry = entry(zip, jar, wanted);
      boolean cached = Files.isRegularFile(target) && Files.size(target) == entry.getSize();
      if (!cached) {
        extract(zip, entry, jar, target, wanted.sha256());
      } else if (wanted.sha256() != null) {
        check(HexFormat.of().formatHex(Sha256.of(target)), wanted, target.toString());
      }
      notes.accept(
          wanted + ": " + Quantity.bytes(entry.getSize()) + " from " + (cached ? target : jar));
      return target;
    } catch (ZipException e) {
      throw new InputException(jar + " is not a valid archive: " + e.getMessage(), e);
    } catch (IOException e) {
      throw new InputException("cannot read " + wanted + " in " + jar + ": " + e.getMessage(), e);
    }
  }

  /** Whether the artefact has the entry. */
  public boolean has(MavenEntry wanted) {
    Path jar = jar(wanted);
    try (ZipFile zip = new ZipFile(jar.toFile())) {
      return zip.getEntry(wanted.entry()) != null;
    } catch (IOException e) {
      throw new InputException("cannot read " + jar + ": " + e.getMessage(), e);
    }
  }

  private static ZipEntry entry(ZipFile zip, Path jar, MavenEntry wanted) {
    ZipEntry entry = zip.getEntry(wanted.entry());
    if (entry == null || entry.isDirectory()) {
      List<String> near =
          zip.stream()
              .filter(e -> !e.isDirectory() && e.getSize() > 0)
              .map(ZipEntry::getName)
              .filter(name -> !name.endsWith(".class") && !name.startsWith("META-INF/"))
              .toList();
      throw new InputException(
          wanted.coordinates()
              + " has no entry '"
              + wanted.entry()
              + "'; it has "
              + NearNames.list(wanted.entry(), near));
    }
    if (entry.getSize() < 0 || entry.getSize() > MAX_ENTRY) {
      throw new InputException(
          jar + ": the entry " + wanted.entry() + " claims " + entry.getSize() + " bytes");
    }
    return entry;
  }

  private void extract(ZipFile zip, ZipEntry entry, Path jar, Path target, String sha256)
      throws IOException {
    makeFolder(target.getParent());
    MessageDigest digest = Sha256.digest();
    try (AtomicFile file = AtomicFile.create(target);
        InputStream in = zip.getInputStream(entry)) {
      byte[] buffer = new byte[1 << 16];
      long size = 0;
      for (int read; (read = in.read(buffer)) >= 0; ) {
        size += read;
        if (size > entry.getSize()) {
          throw new InputException(
              jar
                  + ": the entry "
                  + entry.getName()
                  + " is longer than the "
                  + entry.getSize()
                  + " bytes that it claims");
        }
        digest.update(buffer, 0, read);
        file.write(ByteBuffer.wrap(buffer, 0, read));
      }
      if (size != entry.getSize()) {
        throw new InputException(jar + ": the entry " + entry.getName() + " is truncated");
      }
      if (sha256 != null) {
        check(HexFormat.of().formatHex(digest.digest()), sha256, jar + "!/" + entry.getName());
      }
      file.commit();
    }
  }

  private static void makeFolder(Path folder) {
    try {
      Files.createDirectories(folder);
    } catch (IOException e) {
      throw InputException.of(
          "cannot make the folder " + folder + " (XDG_CACHE_HOME names another place)", e);
    }
  }

  private static void check(String actual, MavenEntry wanted, String where) {
    check(actual, wanted.sha256(), where);
  }

  private static void check(String actual, String wanted, String where) {
    if (!actual.equals(wanted)) {
      throw new InputException(
          where + " has the SHA-256 " + actual + ", not " + wanted + " as was asked for");
    }
  }

  private static Path cacheFolder() {
    String home = System.getenv("XDG_CACHE_HOME");
    Path base =
        home != null && Path.of(home).isAbsolute() // the specification ignores relative ones
            ? Path.of(home)
            : Path.of(System.getProperty("user.home"), ".cache");
    return base.resolve("espalier");
  }

  /** Where the user's local repository is, as far as that can be told without starting Maven. */
  private static List<Path> repositories() {
    for (String variable : new String[] {"MAVEN_ARGS", "MAVEN_OPTS"}) {
      String value = System.getenv(variable);
      Matcher matcher = REPOSITORY_OPTION.matcher(value == null ? "" : value);
      if (matcher.find()) {
        for (int i = 1; i <= 3; i++) {
          if (matcher.group(i) != null) {
            return List.of(Path.of(matcher.group(i)));
          }
        }
      }
    }
    Path folder = Path.of(System.getProperty("user.home"), ".m2");
    String configured = configuredRepository(folder.resolve("settings.xml"));
    return List.of(configured == null ? folder.resolve("repository") : Path.of(configured));
  }

  /** The localRepository of a settings file, or null; Maven itself reports a broken file. */
  private static String configuredRepository(Path settings) {
    if (!Files.isRegularFile(settings)) {
      return null;
    }
    XMLInputFactory factory = XMLInputFactory.newDefaultFactory();
    factory.setProperty(XMLInputFactory.SUPPORT_DTD, false);
    try (InputStream in = Files.newInputStream(settings)) {
      XMLStreamReader reader = factory.createXMLStreamReader(in);
      int depth = 0;
      while (reader.hasNext()) {
        int event = reader.next();
        if (event == XMLStreamConstants.START_ELEMENT) {
          depth++;
          if (depth == 2 && reader.getLocalName().equals("localRepository")) {
            String text =
                reader
                    .getElementText()
                    .strip()
                    .replace("${user.home}", System.getProperty("user.home"));
            return text.isEmpty() || text.contains("${") ? null : text;
          }
        } else if (event == XMLStreamConstants.END_ELEMENT) {
          depth--;
        }
      }
      return null;
    } catch (IOException | XMLStreamException e) {
      return null;
    }
  }
}
