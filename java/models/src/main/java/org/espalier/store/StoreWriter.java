package org.espalier.store;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.AtomicFolder;
import org.espalier.format.FileTree;

/**
 * Changes a store. While it is open no other writer is; readers go on. What a process that died left
 * half-written is removed when the next writer opens.
 *
 * <p>Not thread safe. After close another may write, and what changes the store throws an {@link IllegalStateException}.
 */
public final class StoreWriter implements AutoCloseable {
  private final ModelStore store;
  private final WriterLock lock;
  private boolean closed;

  StoreWriter(ModelStore store, WriterLock lock) {
    this.store = store;
    this.lock = lock;
    try {
      removeLeftovers(store.folder());
      removeLeftovers(store.folder().resolve(ModelStore.VERSIONS));
    } catch (RuntimeException e) {
      lock.close();
      throw e;
    }
  }

  /** Where the files of a new version are put. */
  public static final class NewVersion {
    private final AtomicFolder folder;
    private final Set<String> files = new TreeSet<>();

    /** Files of other versions, whose sums are known, by path. */
    private final Map<String, Version.StoredFile> shared = new HashMap<>();

    /** The sums that copies must have, by path. */
    private final Map<String, String> expected = new HashMap<>();

    private NewVersion(AtomicFolder folder) {
      this.folder = folder;
    }

    /**
     * Creates a file.
     *
     * @param path relative, with slashes
     * @return its channel, which the caller closes
     * @throws InputException if a version can have no such file, or the file system refuses
     */
    public FileChannel create(String path) {
      return folder.create(ModelStore.MODEL + "/" + added(path));
    }

    /** Creates a file of the bytes that remain; errors are as of {@link #create}. */
    public void write(String path, ByteBuffer bytes) {
      folder.write(ModelStore.MODEL + "/" + added(path), bytes);
    }

    /** Copies a file. */
    public void copy(Path source, String path) {
      if (!Files.isRegularFile(source)) {
        throw new InputException(
            "cannot publish "
                + source
                + ": "
                + (Files.exists(source) ? "it is not a regular file" : "there is no such file"));
      }
      folder.copy(source, ModelStore.MODEL + "/" + added(path));
    }

    /**
     * Copies a file that was read before.
     *
     * @param sha256 of what was read: publishing fails where the file was changed since
     */
    public void copy(Path source, String path, String sha256) {
      copy(source, path);
      expected.put(path, sha256);
    }

    /** Takes a file over from another version of the same file system, whose bytes both have then where that is possible. */
    public void share(ModelStore.Held from, String path) {
      Path source = from.file(path);
      folder.link(source, ModelStore.MODEL + "/" + added(path));
      from.version().files().stream()
          .filter(f -> f.path().equals(path))
          .forEach(f -> shared.put(path, f));
    }

    private Version.StoredFile stored(String path) {
      if (shared.containsKey(path)) {
        return shared.get(path); // verified when it was held
      }
      Path file = folder.path().resolve(ModelStore.MODEL).resolve(path);
      String sha256;
      long bytes;
      try {
        bytes = Files.size(file);
        sha256 = ModelStore.sha256(file);
      } catch (IOException e) {
        throw folder.failure(path, e);
      }
      if (!sha256.equals(expected.getOrDefault(path, sha256))) {
        throw new InputException(
            "cannot publish: what is to be " + path + " was changed since it was read");
      }
      return new Version.StoredFile(path, bytes, sha256);
    }

    /** Copies all files below a folder; hidden ones and symbolic links to folders are refused. */
    public void copyFolder(Path source) {
      List<Path> found = new ArrayList<>();
      try (Stream<Path> paths = Files.walk(source)) {
        paths.filter(p -> !Files.isDirectory(p, LinkOption.NOFOLLOW_LINKS)).forEach(found::add);
      } catch (IOException e) {
        throw InputException.of("cannot read " + source, e);
      }
      found.sort(null);
      for (Path file : found) {
        copy(file, source.relativize(file).toString());
      }
    }

    /** The error to throw when the file system refused a write to {@code path}. */
    public InputException failure(String path, IOException cause) {
      return folder.failure(path, cause);
    }

    private String added(String path) {
      String problem = Version.StoredFile.problem(path);
      if (problem != null) {
        throw new InputException("cannot publish: " + problem);
      }
      if (!files.add(path)) {
        throw new InputException("cannot publish: two files would be called " + path);
      }
      return path;
    }
  }

  /** Writes the files of a new version. */
  @FunctionalInterface
  public interface Content {
    void write(NewVersion version);
  }

  /**
   * Adds a version and makes it current.
   *
   * @param content writes its files
   * @param model the path of the file that readers open, or empty for the whole folder
   * @param key signs it, or null
   * @throws InputException if the files cannot be read or written; the store is then unchanged
   */
  public Version publish(Content content, String model, Lineage lineage, SigningKey key) {
    return add(content, model, lineage, key, true);
  }

  /** Adds a version as {@link #publish} does and leaves the current one current. */
  public Version propose(Content content, String model, Lineage lineage, SigningKey key) {
    return add(content, model, lineage, key, false);
  }

  private Version add(
      Content content, String model, Lineage lineage, SigningKey key, boolean current) {
    State state = state();
    List<Long> ids = store.ids();
    long last = ids.isEmpty() ? 0 : ids.get(ids.size() - 1);
    // A version whose writer died before it could be counted keeps its number.
    long id = Math.max(state.next(), last + 1);
    Version version;
    try (AtomicFolder folder = AtomicFolder.create(store.path(id))) {
      NewVersion files = new NewVersion(folder);
      content.write(files);
      if (files.files.isEmpty() || !model.isEmpty() && !files.files.contains(model)) {
        throw new IllegalArgumentException("the version has no file '" + model + "'");
      }
      List<Version.StoredFile> stored = new ArrayList<>();
      for (String path : files.files) {
        stored.add(files.stored(path));
      }
      // Whole milliseconds survive every JSON tool.
      Instant now = Instant.ofEpochMilli(System.currentTimeMillis());
      version = new Version(id, now, model, stored, lineage, key != null);
      byte[] record = Records.encode(version);
      folder.write(ModelStore.RECORD, ByteBuffer.wrap(record));
      if (key != null) {
        String signature = Base64.getEncoder().encodeToString(key.sign(record)) + "\n";
        folder.write(
            ModelStore.SIGNATURE, ByteBuffer.wrap(signature.getBytes(StandardCharsets.US_ASCII)));
      }
      folder.commit();
    }
    try {
      save(state.published(id, current));
    } catch (RuntimeException e) {
      try {
        remove(store.path(id));
      } catch (RuntimeException second) {
        e.addSuppressed(second);
      }
      throw e;
    }
    return version;
  }

  /**
   * Makes the version current that was so before the current one.
   *
   * @return its number
   * @throws InputException if there is none, or it is not as it was published; nothing changes then
   */
  public long rollback() {
    State state = state();
    long id = previous(state);
    if (id == 0) {
      throw new InputException(
          store.folder()
              + " has no version to go back to: none that is left was current before;"
              + " name one");
    }
    rollback(id);
    return id;
  }

  /**
   * Makes a version current.
   *
   * @throws InputException if there is no such version, or it is not as it was published; nothing
   *     changes then
   */
  public void rollback(long id) {
    State state = state();
    store.hold(id).close(); // verifies
    if (id != state.current()) {
      save(state.rolledBack(id));
    }
  }

  private long previous(State state) {
    Set<Long> ids = new HashSet<>(store.ids());
    for (int i = state.history().size() - 1; i >= 0; i--) {
      long id = state.history().get(i);
      if (id != state.current() && ids.contains(id)) {
        return id;
      }
    }
    return 0;
  }

  /**
   * Keeps a version from being collected, or no longer.
   *
   * @throws InputException if there is no such version
   */
  public void pin(long id, boolean pinned) {
    State state = state();
    if (pinned || !state.pinned().contains(id)) {
      store.version(id);
    }
    save(state.pinned(id, pinned));
  }

  /**
   * Which versions to collect: those that are beyond the newest {@code keep} that can be opened and were created before
   * {@code before}; one of the two may be null and then does not matter.
   */
  public record Rule(Integer keep, Instant before) {
    public Rule {
      if (keep == null && before == null) {
        throw new IllegalArgumentException("a number or an age is needed");
      }
      if (keep != null && keep < 0) {
        throw new IllegalArgumentException("keep " + keep + "; 0 or more is right");
      }
    }
  }

  /**
   * What a collection did.
   *
   * @param removed versions, ascending
   * @param inUse versions that the rule meant and a reader holds
   * @param bytes of the removed versions' files that no other version shares
   */
  public record Collected(List<Long> removed, List<Long> inUse, long bytes) {}

  /**
   * Removes versions. Never: the current one, the one that {@link #rollback()} would go back to,
   * pinned ones, ones that a reader holds, and ones whose record cannot be read or, where the store trusts keys, was signed
   * by none of them, which are for a person to look at. Where it trusts keys the newest version that one signed stays too.
   *
   * @param dryRun only tell
   */
  public Collected collect(Rule rule, boolean dryRun) {
    State state = state();
    Set<Long> kept = new HashSet<>(state.pinned());
    kept.add(state.current());
    kept.add(previous(state));
    List<Long> ids = new ArrayList<>(store.ids());
    ids.sort(Comparator.reverseOrder());
    Set<Long> removed = new TreeSet<>();
    List<Long> inUse = new ArrayList<>();
    Freed freed = new Freed(dryRun);
    Leases leases = Leases.join(store.folder().resolve(ModelStore.LEASES));
    try {
      int newest = Math.max(store.isTrusting() ? 1 : 0, rule.keep() == null ? 0 : rule.keep());
      for (long id : ids) {
        Version version;
        try {
          version = store.version(id);
        } catch (InputException e) {
          continue;
        }
        if (newest-- > 0
            || kept.contains(id)
            || rule.before() != null && !version.created().isBefore(rule.before())) {
          continue;
        }
        boolean unread =
            leases.unread(
                id,
                () -> {
                  freed.add(version, store.path(id).resolve(ModelStore.MODEL));
                  if (!dryRun) {
                    remove(store.path(id));
                  }
                  removed.add(id);
                });
        if (!unread) {
          inUse.add(0, id);
        }
      }
    } finally {
      leases.leave();
    }
    if (!dryRun && !removed.isEmpty()) {
      save(state.without(removed));
    }
    return new Collected(List.copyOf(removed), inUse, freed.bytes);
  }

  /** Adds up what goes with versions: the bytes of a file that several have go with the last of them. */
  private static final class Freed {
    private final boolean dryRun;

    /** How many names of a file have gone, by what tells files apart, while in truth none does. */
    private final Map<Object, Integer> gone = new HashMap<>();

    private long bytes;

    Freed(boolean dryRun) {
      this.dryRun = dryRun;
    }

    /** Adds a version that is there and goes now. */
    void add(Version version, Path files) {
      for (Version.StoredFile file : version.files()) {
        try {
          Map<String, Object> known =
              Files.readAttributes(files.resolve(file.path()), "unix:nlink,fileKey");
          int before = dryRun ? gone.merge(known.get("fileKey"), 1, Integer::sum) - 1 : 0;
          bytes += (int) known.get("nlink") - before == 1 ? file.bytes() : 0;
        } catch (IOException e) {
          // It is not there.
        }
      }
    }
  }

  /** A renamed folder is no version any more, whatever happens while it is deleted. */
  private static void remove(Path version) {
    Path doomed =
        version.resolveSibling(
            String.format(".espalier-%016x.tmp", ThreadLocalRandom.current().nextLong()));
    try {
      Files.move(version, doomed, StandardCopyOption.ATOMIC_MOVE);
      FileTree.delete(doomed);
    } catch (IOException e) {
      throw InputException.of("cannot remove " + version, e);
    }
  }

  private static void removeLeftovers(Path folder) {
    try (Stream<Path> content = Files.list(folder)) {
      for (Path path : content.filter(ModelStore::isTemporary).toList()) {
        FileTree.delete(path);
      }
    } catch (IOException e) {
      throw InputException.of("cannot tidy " + folder, e);
    }
  }

  /** What the store holds, to be changed. */
  private State state() {
    if (closed) {
      throw new IllegalStateException("the writer of " + store.folder() + " is closed");
    }
    return store.state();
  }

  private void save(State state) {
    ModelStore.replace(store.folder().resolve(ModelStore.STATE), state.encode());
  }

  @Override
  public void close() {
    closed = true;
    lock.close();
  }
}
