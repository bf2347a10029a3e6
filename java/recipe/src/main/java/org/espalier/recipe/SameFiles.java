package org.espalier.recipe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.Sha256;

/** Tells which of some files hold the same bytes. Only those are read that are as long as another one. */
final class SameFiles {
  private static final long NONE = -1;

  /** How many files there are of a length. */
  private final Map<Long, Integer> lengths = new HashMap<>();

  SameFiles(Collection<Path> files) {
    files.forEach(file -> lengths.merge(length(file), 1, Integer::sum));
  }

  /**
   * What is the same for files of the same bytes alone.
   *
   * @param file one of those; one that is not there, which is told where it is read, is like no other
   * @throws InputException where it cannot be read
   */
  String identity(Path file) {
    long length = length(file);
    if (length == NONE || lengths.get(length) == 1) {
      return file.toString();
    }
    try {
      return HexFormat.of().formatHex(Sha256.of(file));
    } catch (IOException e) {
      throw InputException.of("cannot read the image " + file, e);
    }
  }

  private static long length(Path file) {
    try {
      return Files.size(file);
    } catch (IOException e) {
      return NONE;
    }
  }
}
