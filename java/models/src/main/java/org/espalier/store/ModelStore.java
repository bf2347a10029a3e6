package org.espalier.store;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.attribute.BasicFileAttributes;
import java.security.PublicKey;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Set;
import java.util.TreeMap;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.Sha256;

/**
 * A folder of versions of a model.
 *
 * <pre>
 *   store.json              the format of the folder
 *   state.json              which version is current, what was before, what is pinned
 *   versions/ID/version.json   files with their SHA-256, lineage
 *   versions/ID/version.sig    an Ed25519 signature of version.json, where there is one
 *   versions/ID/model/…        the files
 *   lock, leases            locks of the writer and of readers
 * </pre>
 *
 * <p>A version appears whole, by the renaming of its folder, and becomes current by the replacement
 * of {@code state.json}: a process that is killed at any moment leaves a store that opens, whose
 * current version is complete, and in which nothing that was published is lost. One process writes
 * at a time ({@link #writer}), any number read; a version that somebody {@linkplain #hold holds} is
 * not collected.
 *
 * <p>A store that is opened with {@linkplain #trusting trusted keys} refuses versions that none of
 * them signed. The signature is of a version's record, which holds the hash of every file; it does
 * not say which of the signed versions is current. Hashes are checked when a version is held: what
 * changes the files after that is not noticed.
 *
 * <p>Immutable and thread safe.
 */
public final class ModelStore {
  /** The newest format of a store that this code reads, and the one that it writes. */
  static final int FORMAT = 1;

  static final String STORE = "store.json";
  static final String STATE = "state.json";
  static final String VERSIONS = "versions";
  static final String LOCK = "lock";
  static final String LEASES = "leases";
  static final String RECORD = "version.json";
  static final String SIGNATURE = "version.sig";
  static final String MODEL = "model";

  private static final Set<String> OURS = Set.of(STORE, STATE, VERSIONS, LOCK, LEASES);
  private static final Pattern ID = Pattern.compile("[1-9][0-9]{0,14}");

  /** How often a reader tries again when the current version is deleted while it opens it. */
  private static final int ATTEMPTS = 100;

  private final Path folder;
  private final List<PublicKey> trusted;

  private ModelStore(Path folder, List<PublicKey> trusted) {
    this.folder = folder;
    this.trusted = trusted;
  }

  /**
   * Opens a store, or makes an empty one where there is none.
   *
   * @param folder a store, an empty folder, or a folder that does not exist in one that does
   * @throws InputException if the folder holds something else or cannot be written, or as {@link
   *     #open} does
   */
  public static ModelStore create(Path folder) {
    if (!Files.exists(folder.resolve(STORE))) {
      try {
        Path parent = folder.toAbsolutePath().normalize().getParent();
        if (parent != null && !Files.isDirectory(parent)) {
          throw new InputException(
              "cannot make the store " + folder + ": the folder " + parent + " does not exist");
        }
        if (Files.exists(folder) && !Files.isDirectory(folder)) {
          throw new InputException("cannot make the store " + folder + ": it is not a folder");
        }
        Files.createDirectories(folder);
        try (Stream<Path> content = Files.list(folder)) {
          Optional<Path> foreign =
              content
                  .filter(p -> !OURS.contains(p.getFileName().toString()) && !isTemporary(p))
                  .findAny();
          if (foreign.isPresent()) {
            throw new InputException(
                "cannot make the store "
                    + folder
                    + ": it holds "
                    + foreign.get().getFileName()
                    + "; name a new or an empty folder");
          }
        }
        // A second process that makes the same store waits here and finds it made.
        try (WriterLock lock = WriterLock.take(folder.toRealPath(), Duration.ofSeconds(10))) {
          if (!Files.exists(folder.resolve(STORE))) {
            Files.createDirectories(folder.resolve(VERSIONS));
            if (!Files.exists(folder.resolve(LEASES))) {
              Files.createFile(folder.resolve(LEASES));
            }
            replace(folder.resolve(STATE), State.EMPTY.encode());
            replace(folder.resolve(STORE), Records.bytes(Records.object().put("format", FORMAT)));
          }
        }
      } catch (IOException e) {
        throw InputException.of("cannot make the store " + folder, e);
      }
    }
    return open(folder);
  }

  /**
   * Opens a store.
   *
   * @throws InputException if the folder is no store, or one of a newer format
   */
  public static ModelStore open(Path folder) {
    if (!Files.isDirectory(folder)) {
      throw new InputException(
          folder + (Files.exists(folder) ? " is not a folder" : ": there is no such store"));
    }
    Path file = folder.resolve(STORE);
    try {
      Records.parse(Records.read(file), file);
      ModelStore store = new ModelStore(folder.toRealPath(), List.of());
      store.state();
      return store;
    } catch (NoSuchFileException e) {
      throw new InputException(
          folder + " is not a store: it has no " + STORE + "; 'publish' makes a store", e);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }

  /** The same store, refusing versions that none of these Ed25519 keys signed. */
  public ModelStore trusting(Collection<PublicKey> keys) {
    return new ModelStore(folder, List.copyOf(keys));
  }

  boolean isTrusting() {
    return !trusted.isEmpty();
  }

  /** The store's folder, absolute. */
  public Path folder() {
    return folder;
  }

  State state() {
    Path file = folder.resolve(STATE);
    try {
      return State.of(Records.parse(Records.read(file), file), file);
    } catch (NoSuchFileException e) {
      throw new InputException(
          folder + " is damaged: " + STATE + " is missing; restore it from a backup", e);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }

  /** The number of the current version; empty while there is none. */
  public OptionalLong current() {
    long id = state().current();
    return id == 0 ? OptionalLong.empty() : OptionalLong.of(id);
  }

  /** The versions that were current before, oldest first; some may be collected. */
  public List<Long> history() {
    return state().history();
  }

  /** The versions that are never collected. */
  public Set<Long> pinned() {
    return state().pinned();
  }

  /** The numbers of all versions, ascending. */
  public List<Long> ids() {
    List<Long> ids = new ArrayList<>();
    try (Stream<Path> folders = Files.list(folder.resolve(VERSIONS))) {
      folders
          .map(f -> f.getFileName().toString())
          .filter(name -> ID.matcher(name).matches())
          .forEach(name -> ids.add(Long.valueOf(name)));
    } catch (IOException e) {
      throw InputException.of("cannot read " + folder.resolve(VERSIONS), e);
    }
    ids.sort(null);
    return ids;
  }

  /**
   * The record of a version. Its signature is checked where the store trusts keys; its files are not
   * looked at.
   *
   * @throws InputException if there is no such version, its record is damaged, or no trusted key
   *     signed it
   */
  public Version version(long id) {
    Path file = path(id).resolve(RECORD);
    try {
      byte[] record = Records.read(file);
      Path signatureFile = path(id).resolve(SIGNATURE);
      boolean signed = Files.exists(signatureFile, LinkOption.NOFOLLOW_LINKS);
      if (isTrusting()) {
        if (!signed) {
          throw new InputException(
              "version "
                  + id
                  + " of "
                  + folder
                  + " is not signed, and only signed ones are trusted");
        }
        checkSignature(id, record, Records.read(signatureFile));
      }
      return Records.version(record, file, id, signed);
    } catch (NoSuchFileException e) {
      throw unknown(id, e);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }

  private void checkSignature(long id, byte[] record, byte[] encoded) {
    byte[] signature;
    try {
      signature =
          Base64.getDecoder().decode(new String(encoded, StandardCharsets.ISO_8859_1).strip());
    } catch (IllegalArgumentException e) {
      throw new InputException(
          "the signature of version " + id + " of " + folder + " is damaged", e);
    }
    if (trusted.stream().noneMatch(key -> SigningKey.verifies(key, record, signature))) {
      throw new InputException(
          "version "
              + id
              + " of "
              + folder
              + " is not signed by a trusted key, or was altered"
              + " after it was signed (trusted: "
              + String.join(", ", trusted.stream().map(SigningKey::id).toList())
              + ")");
    }
  }

  private InputException unknown(long id, Exception cause) {
    List<Long> ids = ids();
    if (ids.contains(id)) {
      return new InputException(
          "version " + id + " of " + folder + " is damaged: it has no " + RECORD, cause);
    }
    String known =
        ids.isEmpty()
            ? "it is empty"
            : ids.size() == 1
                ? "it has version " + ids.get(0)
                : "it has "
                    + ids.size()
                    + " versions from "
                    + ids.get(0)
                    + " to "
                    + ids.get(ids.size() - 1);
    return new InputException(folder + " has no version " + id + ": " + known, cause);
  }

  /**
   * What is wrong with a version: its record, signature, and every file, by name, length and
   * SHA-256. Empty where it is as it was published.
   */
  public List<String> verify(long id) {
    try {
      return problems(version(id));
    } catch (InputException e) {
      return List.of(e.getMessage());
    }
  }

  private List<String> problems(Version version) {
    Path root = path(version.id());
    List<String> problems = new ArrayList<>();
    Map<String, Path> found = new TreeMap<>();
    try {
      Files.walkFileTree(
          root,
          new SimpleFileVisitor<>() {
            @Override
            public FileVisitResult visitFile(Path file, BasicFileAttributes attributes) {
              String name = root.relativize(file).toString();
              if (!attributes.isRegularFile()) {
                problems.add(file + " is not a regular file");
              } else if (name.startsWith(MODEL + "/")) {
                found.put(name.substring(MODEL.length() + 1), file);
              } else if (!name.equals(RECORD) && !name.equals(SIGNATURE)) {
                problems.add(file + " does not belong to the version");
              }
              return FileVisitResult.CONTINUE;
            }
          });
      for (Version.StoredFile expected : version.files()) {
        Path file = found.remove(expected.path());
        if (file == null) {
          problems.add(root.resolve(MODEL) + "/" + expected.path() + " is missing");
        } else if (Files.size(file) != expected.bytes()) {
          problems.add(
              file
                  + " has "
                  + Files.size(file)
                  + " bytes; "
                  + expected.bytes()
                  + " were published");
        } else if (!sha256(file).equals(expected.sha256())) {
          problems.add(file + " was altered: its SHA-256 is not that of the published file");
        }
      }
    } catch (NoSuchFileException e) {
      problems.add(e.getFile() + " is missing");
    } catch (IOException e) {
      problems.add(InputException.of("cannot read " + root, e).getMessage());
    }
    found.values().forEach(file -> problems.add(file + " does not belong to the version"));
    return problems;
  }

  static String sha256(Path file) throws IOException {
    return HexFormat.of().formatHex(Sha256.of(file, LinkOption.NOFOLLOW_LINKS));
  }

  /**
   * A version in use: verified when it was opened, and kept from collection until closed. Where its files are is not told
   * after that. Thread safe.
   */
  public final class Held implements AutoCloseable {
    private final Version version;
    private final Leases leases;
    private volatile boolean closed;

    private Held(Version version, Leases leases) {
      this.version = version;
      this.leases = leases;
    }

    public Version version() {
      return version;
    }

    /**
     * What to open: the version's main file, or its folder where the folder is the model.
     *
     * @throws IllegalStateException after close
     */
    public Path model() {
      return version.model().isEmpty() ? folder() : file(version.model());
    }

    /**
     * The folder of the version's files.
     *
     * @throws IllegalStateException after close
     */
    public Path folder() {
      if (closed) {
        throw new IllegalStateException(
            "version " + version.id() + " of " + ModelStore.this.folder + " is held no more");
      }
      return path(version.id()).resolve(MODEL);
    }

    /**
     * A file of the version.
     *
     * @throws InputException if it has no such file
     * @throws IllegalStateException after close
     */
    public Path file(String name) {
      if (version.files().stream().noneMatch(f -> f.path().equals(name))) {
        throw new InputException(
            "version " + version.id() + " of " + ModelStore.this.folder + " has no file " + name);
      }
      try {
        return folder().resolve(name);
      } catch (InvalidPathException e) {
        throw new InputException("'" + name + "' is no file name on this system", e);
      }
    }

    @Override
    public synchronized void close() {
      if (!closed) {
        closed = true;
        leases.release(version.id());
        leases.leave();
      }
    }
  }

  /**
   * Opens a version: checks signature and hashes and keeps it from being collected.
   *
   * @throws InputException if there is no such version or it is not as it was published
   */
  public Held hold(long id) {
    if (id < 1 || !Files.exists(path(id))) {
      throw unknown(id, null);
    }
    Leases leases = Leases.join(folder.resolve(LEASES));
    try {
      leases.hold(id);
    } catch (RuntimeException e) {
      leases.leave();
      throw e;
    }
    Held held = null;
    try {
      Version version = version(id);
      List<String> problems = problems(version);
      if (!problems.isEmpty()) {
        throw new InputException("version " + id + " is refused: " + String.join("; ", problems));
      }
      held = new Held(version, leases);
      return held;
    } finally {
      if (held == null) {
        leases.release(id);
        leases.leave();
      }
    }
  }

  /**
   * Opens the current version, as {@link #hold} does.
   *
   * @throws InputException if none is, or as {@link #hold} does
   */
  public Held holdCurrent() {
    for (int attempt = 0; ; attempt++) {
      long id = state().current();
      if (id == 0) {
        throw new InputException(withoutCurrent());
      }
      try {
        return hold(id);
      } catch (InputException e) {
        // A writer may have made another version current and collected this one meanwhile.
        if (Files.exists(path(id)) || state().current() == id || attempt == ATTEMPTS) {
          throw e;
        }
      }
    }
  }

  /** Why there is no current version, and how one becomes that. Where there are versions, their files are read. */
  public String withoutCurrent() {
    List<Long> ids = ids();
    String what = folder + " has no current version: ";
    for (int i = ids.size() - 1; i >= 0; i--) {
      if (verify(ids.get(i)).isEmpty()) {
        return what + "'store rollback " + ids.get(i) + "' makes one that is whole current";
      }
    }
    return what + (ids.isEmpty() ? "nothing was published yet" : "none that is there is whole");
  }

  /**
   * The right to write. Close it soon: other writers wait for it.
   *
   * @param patience how long to wait for another writer
   * @throws InputException if another process, or this one, still writes then
   */
  public StoreWriter writer(Duration patience) {
    return new StoreWriter(this, WriterLock.take(folder, patience));
  }

  Path path(long id) {
    return folder.resolve(VERSIONS).resolve(Long.toString(id));
  }

  static boolean isTemporary(Path path) {
    return AtomicFile.isTemporary(path);
  }

  static void replace(Path file, byte[] content) {
    try (AtomicFile atomic = AtomicFile.create(file)) {
      atomic.write(ByteBuffer.wrap(content));
      atomic.commit();
    }
  }
}
