package org.espalier.compress;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.json.JsonWriteFeature;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.function.Function;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.AtomicFolder;
import org.espalier.format.Names;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;

/**
 * The output that corresponds to a checkpoint: a file for a file; for a folder, a folder with the
 * same shards, an index where there was one, and a copy of every other file. Sub-folders whose name
 * begins with a dot ({@code .git}, {@code .cache}) are not copied; links to files become files.
 *
 * <p>Nothing has its name before {@link #commit}, and without that nothing stays.
 */
final class CheckpointOutput implements AutoCloseable {
  /** Tensors that stay as they are are copied in pieces of this size. */
  static final int COPY_BYTES = 4 << 20;

  /** NaN and Infinity stay bare words, as Python reads and writes them. */
  private static final JsonMapper JSON =
      JsonMapper.builder().disable(JsonWriteFeature.WRITE_NAN_AS_STRINGS).build();

  private final Checkpoint input;
  private final AtomicFile file;
  private final AtomicFolder folder;
  private final List<FileChannel> channels = new ArrayList<>();
  private final List<SafetensorsWriter> writers = new ArrayList<>();
  private final Map<String, SafetensorsWriter> writerOf = new HashMap<>();
  private ByteBuffer copyBuffer;
  private long writeNanos;

  private CheckpointOutput(Checkpoint input, AtomicFile file, AtomicFolder folder) {
    this.input = input;
    this.file = file;
    this.folder = folder;
  }

  /**
   * Checks that the output can be made and creates nothing.
   *
   * @throws InputException if the target is the input, inside it, or cannot be written
   */
  static void check(Checkpoint input, Path target) {
    if (!Files.isDirectory(input.path())) {
      AtomicFile.check(target, input.path());
      return;
    }
    try {
      Path source = input.path().toRealPath();
      Path absolute = target.toAbsolutePath().normalize();
      Path real = Files.exists(absolute) ? absolute.toRealPath() : absolute;
      if (real.equals(source)) {
        throw new InputException(
            "cannot write " + target + ": it is the input, which is never modified");
      }
      Path parent = AtomicFolder.check(target).getParent();
      if (parent.startsWith(source)) {
        throw new InputException(
            "cannot write " + target + ": it lies inside the input, which is never modified");
      }
    } catch (IOException e) {
      throw new InputException("cannot write " + target + ": " + e.getMessage(), e);
    }
  }

  /**
   * Creates the output under a temporary name and writes all that is not a tensor.
   *
   * @param outputs the tensors that stand for one of the input, in the same shard
   * @param replaced contents for files of the folder that are not copied, by their name
   */
  static CheckpointOutput create(
      Checkpoint input,
      Path target,
      Function<TensorInfo, List<TensorSpec>> outputs,
      Map<String, byte[]> replaced) {
    check(input, target);
    List<Path> others = Files.isDirectory(input.path()) ? otherFiles(input, replaced) : List.of();
    Map<SafetensorsFile, List<TensorSpec>> specs = new HashMap<>();
    long bytes = 0;
    for (SafetensorsFile shard : input.files()) {
      List<TensorSpec> of =
          shard.tensors().stream().flatMap(t -> outputs.apply(t).stream()).toList();
      specs.put(shard, of);
      bytes += SafetensorsWriter.fileBytes(of, shard.metadata());
    }
    checkSpace(target, bytes);
    boolean isFolder = Files.isDirectory(input.path());
    CheckpointOutput output =
        new CheckpointOutput(
            input,
            isFolder ? null : AtomicFile.create(target, input.path()),
            isFolder ? AtomicFolder.create(target) : null);
    try {
      for (SafetensorsFile shard : input.files()) {
        output.addWriter(shard, specs.get(shard));
      }
      if (isFolder) {
        for (Path other : others) {
          output.folder.copy(other, input.path().relativize(other).toString());
        }
        replaced.forEach((name, content) -> output.folder.write(name, ByteBuffer.wrap(content)));
        if (input.isSharded()) {
          output.folder.write(Checkpoint.INDEX, ByteBuffer.wrap(index(input.files(), specs)));
        }
      }
      return output;
    } catch (RuntimeException e) {
      output.close();
      throw e;
    }
  }

  private void addWriter(SafetensorsFile shard, List<TensorSpec> specs) {
    SafetensorsWriter writer;
    if (folder == null) {
      writer = new SafetensorsWriter(file, specs, shard.metadata());
    } else {
      String name = shard.path().getFileName().toString();
      FileChannel channel = folder.create(name);
      channels.add(channel);
      writer =
          new SafetensorsWriter(channel, e -> folder.failure(name, e), specs, shard.metadata());
    }
    writers.add(writer);
    for (TensorSpec spec : specs) {
      if (writerOf.put(spec.name(), writer) != null) {
        throw new InputException(
            input.path() + ": the output would have two tensors " + Names.quote(spec.name()));
      }
    }
  }

  /** Where the folder does not exist, the error comes from making the output. */
  private static void checkSpace(Path target, long bytes) {
    Path parent = target.toAbsolutePath().getParent();
    // Not by a FileStore, which a system without a table of mounts (chroot) does not have.
    long free = parent.toFile().getUsableSpace();
    if (bytes > free && Files.isDirectory(parent)) {
      throw new InputException(
          "cannot write "
              + target
              + ": it needs "
              + bytes
              + " bytes and the file system has "
              + free
              + " left");
    }
  }

  /** The files of the folder that are copied as they are. */
  private static List<Path> otherFiles(Checkpoint input, Map<String, byte[]> replaced) {
    Path root = input.path();
    Set<Path> written = new HashSet<>();
    input.files().forEach(f -> written.add(f.path()));
    written.add(root.resolve(Checkpoint.INDEX));
    replaced.keySet().forEach(name -> written.add(root.resolve(name)));
    List<Path> others = new ArrayList<>();
    try {
      Path real = root.toRealPath(); // the folder itself may be a link
      Files.walkFileTree(
          real,
          new SimpleFileVisitor<>() {
            @Override
            public FileVisitResult preVisitDirectory(Path path, BasicFileAttributes attributes) {
              boolean hidden = !path.equals(real) && path.getFileName().toString().startsWith(".");
              return hidden ? FileVisitResult.SKIP_SUBTREE : FileVisitResult.CONTINUE;
            }

            @Override
            public FileVisitResult visitFile(Path found, BasicFileAttributes attributes) {
              Path path = root.resolve(real.relativize(found));
              if (!written.contains(path)) {
                // Not a folder behind a link, which could lead anywhere, nor a pipe or a device.
                if (!Files.isRegularFile(path)) {
                  throw new InputException(
                      path + " cannot be copied: it is neither a file nor a link to one");
                }
                others.add(path);
              }
              return FileVisitResult.CONTINUE;
            }
          });
    } catch (IOException e) {
      throw new InputException("cannot read " + root + ": " + e.getMessage(), e);
    }
    return others;
  }

  private static byte[] index(
      List<SafetensorsFile> shards, Map<SafetensorsFile, List<TensorSpec>> specs) {
    ObjectNode root = JsonNodeFactory.instance.objectNode();
    SortedMap<String, String> weightMap = new TreeMap<>(Names.ORDER);
    long totalSize = 0;
    for (SafetensorsFile shard : shards) {
      for (TensorSpec spec : specs.get(shard)) {
        totalSize += spec.bytes();
        weightMap.put(spec.name(), shard.path().getFileName().toString());
      }
    }
    root.putObject("metadata").put("total_size", totalSize);
    ObjectNode map = root.putObject("weight_map");
    weightMap.forEach(map::put);
    return json(root);
  }

  /** A JSON object as indented text with a final line feed. */
  static byte[] json(ObjectNode root) {
    try {
      String text = JSON.writerWithDefaultPrettyPrinter().writeValueAsString(root);
      return (text + "\n").getBytes(StandardCharsets.UTF_8);
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("a JSON tree cannot be written", e);
    }
  }

  /** Writes the next bytes of an output tensor. */
  void append(String tensor, ByteBuffer bytes) {
    long start = System.nanoTime();
    writerOf.get(tensor).append(tensor, bytes);
    writeNanos += System.nanoTime() - start;
  }

  /** Copies a tensor of the input that is an output tensor as it is. */
  void copy(TensorInfo tensor) {
    long start = System.nanoTime();
    if (copyBuffer == null) {
      copyBuffer = ByteBuffer.allocateDirect(COPY_BYTES);
    }
    writerOf.get(tensor.name()).append(input.fileOf(tensor.name()), tensor, copyBuffer);
    writeNanos += System.nanoTime() - start;
  }

  /**
   * Writes each tensor of the input, in the order in which they lie there, and commits.
   *
   * @param changed the names of those that {@code write} writes; others are copied
   * @param progress hears of the input's bytes
   */
  void writeAll(Set<String> changed, Consumer<TensorInfo> write, Progress progress) {
    long all = input.tensors().stream().mapToLong(TensorInfo::bytes).sum();
    long done = 0;
    for (TensorInfo tensor : input.tensorsByPlace()) {
      progress.at(Progress.Phase.WRITE, done, all);
      if (changed.contains(tensor.name())) {
        write.accept(tensor);
      } else {
        copy(tensor);
      }
      done += tensor.bytes();
    }
    commit();
    progress.at(Progress.Phase.WRITE, done, all);
  }

  /**
   * Checks that all is written, makes it durable and gives it its name.
   *
   * @param before files that take their names together with it, and before it
   */
  void commit(AtomicFile... before) {
    long start = System.nanoTime();
    writers.forEach(SafetensorsWriter::finish);
    List<AtomicFile> files = new ArrayList<>(List.of(before));
    if (folder == null) {
      files.add(file);
      AtomicFile.commitAll(files);
    } else {
      AtomicFile.commitAll(files);
      folder.commit();
    }
    writeNanos += System.nanoTime() - start;
  }

  /**
   * Where the time went of what computes and writes in one pass, with nothing to select.
   *
   * @param start when it began, by {@link System#nanoTime}
   * @param opened when the pass began
   */
  Seconds seconds(long start, long opened) {
    long pass = System.nanoTime() - opened;
    return new Seconds((opened - start) * 1e-9, 0, (pass - writeNanos) * 1e-9, writeNanos * 1e-9);
  }

  /** The time spent in writing so far, in nanoseconds. */
  long writeNanos() {
    return writeNanos;
  }

  @Override
  public void close() {
    for (FileChannel channel : channels) {
      try {
        channel.close();
      } catch (IOException e) {
        throw new InputException("cannot write " + folder.target() + ": " + e.getMessage(), e);
      }
    }
    if (folder == null) {
      file.close();
    } else {
      folder.close();
    }
  }
}
