package org.espalier.torch;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.Map;
import java.util.TreeMap;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;
import org.espalier.InputException;
import org.espalier.format.Sha256;

/**
 * The zip file that libtorch writes. It puts all entries into a folder named after the file, which is a
 * temporary one with a random name here; readers take any folder. This gives the folder one name, so that equal
 * modules are equal files.
 */
final class ScriptArchive {
  private static final byte[] FOLDER =
      "espalier-torchscript-model".getBytes(StandardCharsets.US_ASCII);

  private static final int END = 0x06054b50;
  private static final int LONG_END = 0x06064b50;
  private static final int LONG_END_LOCATOR = 0x07064b50;
  private static final int DIRECTORY_ENTRY = 0x02014b50;
  private static final int ENTRY = 0x04034b50;
  private static final long IN_EXTRA_FIELD = 0xffffffffL;

  private final FileChannel file;

  private ScriptArchive(FileChannel file) {
    this.file = file;
  }

  /**
   * Renames the folder of all entries.
   *
   * @param file open for reading and writing
   * @throws IllegalStateException where the file is no such archive
   */
  static void renameFolder(FileChannel file) throws IOException {
    new ScriptArchive(file).rename();
  }

  /** The SHA-256 of names and contents of all entries but those about sources and the archive itself. */
  static String contentHash(Path file) {
    try (ZipFile zip = new ZipFile(file.toFile())) {
      MessageDigest digest = Sha256.digest();
      TreeMap<String, ZipEntry> entries = new TreeMap<>();
      zip.stream()
          .forEach(e -> entries.put(e.getName().substring(e.getName().indexOf('/') + 1), e));
      for (Map.Entry<String, ZipEntry> entry : entries.entrySet()) {
        String name = entry.getKey();
        if (name.endsWith(".debug_pkl") || name.startsWith(".data/")) {
          continue;
        }
        digest.update(
            (name + ' ' + entry.getValue().getSize() + ' ').getBytes(StandardCharsets.UTF_8));
        try (InputStream in = zip.getInputStream(entry.getValue())) {
          digest.update(in.readAllBytes());
        }
      }
      return HexFormat.of().formatHex(digest.digest());
    } catch (IOException e) {
      throw new InputException("cannot read " + file + ": " + e.getMessage(), e);
    }
  }

  private void rename() throws IOException {
    long end = file.size() - 22;
    expect(END, end);
    long count = read(end + 10, 2).getShort() & 0xffff;
    long at = read(end + 16, 4).getInt() & 0xffffffffL;
    if (end >= 20 && read(end - 20, 4).getInt() == LONG_END_LOCATOR) {
      long longEnd = read(end - 12, 8).getLong();
      expect(LONG_END, longEnd);
      count = read(longEnd + 32, 8).getLong();
      at = read(longEnd + 48, 8).getLong();
    }
    for (long i = 0; i < count; i++) {
      expect(DIRECTORY_ENTRY, at);
      ByteBuffer entry = read(at, 46);
      int name = entry.getShort(28) & 0xffff;
      int extra = entry.getShort(30) & 0xffff;
      int comment = entry.getShort(32) & 0xffff;
      long local = entry.getInt(42) & 0xffffffffL;
      if (local == IN_EXTRA_FIELD) {
        local = extraOffset(entry, read(at + 46 + name, extra));
      }
      expect(ENTRY, local);
      renameAt(at + 46, name);
      renameAt(local + 30, read(local + 26, 2).getShort() & 0xffff);
      at += 46 + name + extra + comment;
    }
  }

  /** The place of an entry beyond 4 GiB, behind those sizes that are as large. */
  private static long extraOffset(ByteBuffer entry, ByteBuffer extra) {
    while (extra.remaining() >= 4) {
      int id = extra.getShort() & 0xffff;
      int length = extra.getShort() & 0xffff;
      if (id == 1) {
        int skip = 0;
        for (int field : new int[] {20, 24}) {
          skip += (entry.getInt(field) & 0xffffffffL) == IN_EXTRA_FIELD ? 8 : 0;
        }
        return extra.getLong(extra.position() + skip);
      }
      extra.position(extra.position() + length);
    }
    throw new IllegalStateException("libtorch wrote an archive with an entry that has no place");
  }

  private void renameAt(long at, int length) throws IOException {
    ByteBuffer name = read(at, length);
    if (length <= FOLDER.length || name.get(FOLDER.length) != '/') {
      throw new IllegalStateException(
          "libtorch wrote an entry " + StandardCharsets.UTF_8.decode(name) + " of another length");
    }
    file.write(ByteBuffer.wrap(FOLDER), at);
  }

  private void expect(int signature, long at) throws IOException {
    if (at < 0 || read(at, 4).getInt() != signature) {
      throw new IllegalStateException("libtorch wrote no zip file that is understood, at " + at);
    }
  }

  private ByteBuffer read(long at, int bytes) throws IOException {
    ByteBuffer buffer = ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    while (buffer.hasRemaining()) {
      if (file.read(buffer, at + buffer.position()) < 0) {
        throw new IllegalStateException("libtorch wrote a zip file that is cut off");
      }
    }
    return buffer.flip();
  }
}
