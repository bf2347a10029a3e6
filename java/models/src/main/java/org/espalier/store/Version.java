package org.espalier.store;

import java.time.Instant;
import java.util.List;
import java.util.regex.Pattern;

/**
 * What the store records about a version. Its folder is {@code versions/ID}: the record itself
 * ({@code version.json}), perhaps its signature, and the files below {@code model/}.
 *
 * @param id counts from 1 and is never used twice
 * @param created when it was published
 * @param model the file that a reader opens, one of {@code files}; empty where the whole folder is
 *     the model
 * @param files all files, by path
 * @param lineage where it comes from
 * @param signed whether a signature lies beside it; whose it is, only a store with trusted keys
 *     checks
 */
public record Version(
    long id,
    Instant created,
    String model,
    List<StoredFile> files,
    Lineage lineage,
    boolean signed) {
  /**
   * A file of a version.
   *
   * @param path relative to the version's {@code model} folder, with slashes
   * @param bytes its length
   * @param sha256 64 hexadecimal digits, lower case
   */
  public record StoredFile(String path, long bytes, String sha256) {
    private static final Pattern SHA256 = Pattern.compile("[0-9a-f]{64}");

    public StoredFile {
      String problem = problem(path);
      if (problem != null) {
        throw new IllegalArgumentException(problem);
      }
      if (bytes < 0) {
        throw new IllegalArgumentException(path + " has " + bytes + " bytes");
      }
      if (!SHA256.matcher(sha256).matches()) {
        throw new IllegalArgumentException(path + " has no SHA-256 of 64 hexadecimal digits");
      }
    }

    /** Why a path cannot be that of a stored file; null where it can. */
    static String problem(String path) {
      if (path.isEmpty() || path.length() > 1000) {
        return "a file's path has " + path.length() + " characters; 1 to 1000 are right";
      }
      for (String part : path.split("/", -1)) {
        if (part.isEmpty() || part.equals(".") || part.equals("..") || part.length() > 200) {
          return quote(path) + " is not a path inside a version";
        }
      }
      for (int i = 0; i < path.length(); i++) {
        char c = path.charAt(i);
        if (c == '\\' || Character.isISOControl(c) || Character.isSurrogate(c)) {
          return quote(path) + " has characters that no file of a version may have";
        }
      }
      return null;
    }

    private static String quote(String path) {
      return org.espalier.format.Names.quote(path);
    }
  }

  public Version {
    files = List.copyOf(files);
    if (id < 1) {
      throw new IllegalArgumentException("version " + id + "; versions count from 1");
    }
    if (!model.isEmpty() && files.stream().noneMatch(f -> f.path().equals(model))) {
      throw new IllegalArgumentException("version " + id + " has no file " + model);
    }
  }

  /** The bytes of all files. */
  public long bytes() {
    return files.stream().mapToLong(StoredFile::bytes).sum();
  }
}
