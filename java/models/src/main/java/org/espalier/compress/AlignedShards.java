package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.format.AtomicFile;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;

/**
 * Copies of shards in which tensors do not lie at multiples of their element size, as old writers left them. Such a
 * shard is copied into a temporary file beside the target, with its tensors aligned.
 */
final class AlignedShards implements AutoCloseable {
  private final Path target;
  private final Map<SafetensorsFile, SafetensorsFile> copies = new HashMap<>();
  private final Map<SafetensorsFile, AtomicFile> temporaries = new HashMap<>();

  /**
   * @param target the file or folder that the run will write
   */
  AlignedShards(Path target) {
    this.target = target.toAbsolutePath().normalize();
  }

  /** The shard itself, or its copy. */
  SafetensorsFile of(SafetensorsFile shard) {
    if (shard.tensors().stream().allMatch(shard::isAligned)) {
      return shard;
    }
    return copies.computeIfAbsent(shard, this::copy);
  }

  private SafetensorsFile copy(SafetensorsFile shard) {
    List<TensorSpec> specs = shard.tensors().stream().map(TensorSpec::of).toList();
    // The name is never taken: the file goes with its temporary name.
    AtomicFile file = AtomicFile.create(target.resolveSibling(target.getFileName() + ".aligned"));
    temporaries.put(shard, file);
    SafetensorsWriter writer = new SafetensorsWriter(file, specs, shard.metadata());
    ByteBuffer buffer = ByteBuffer.allocateDirect(CheckpointOutput.COPY_BYTES);
    for (TensorInfo tensor : shard.tensors()) {
      writer.append(shard, tensor, buffer);
    }
    writer.finish();
    return SafetensorsFile.open(file.path());
  }

  @Override
  public void close() {
    copies.values().forEach(SafetensorsFile::close);
    temporaries.values().forEach(AtomicFile::close);
  }
}
