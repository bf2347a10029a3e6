package org.espalier.compress;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import org.espalier.InputException;
import org.espalier.format.AtomicFolder;
import org.espalier.format.Names;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;

/**
 * A model in the compressed-tensors layout, from integers and scales that are known already: a folder with
 * {@code config.json} and {@code model.safetensors}.
 */
public final class CompressedTensorsFolder {
  private CompressedTensorsFolder() {}

  /**
   * One tensor of the float model.
   *
   * @param name as in a checkpoint; that of an int8 weight ends in {@code .weight}
   * @param shape of an int8 weight [out, in]
   * @param floats its values, little-endian float32; null where it is int8
   * @param integers row-major; null where it is float
   * @param scales one a row; null where it is float
   * @param linear whether it is the weight of a linear layer
   */
  public record Weight(
      String name,
      List<Long> shape,
      ByteBuffer floats,
      ByteBuffer integers,
      ByteBuffer scales,
      boolean linear) {}

  /**
   * Writes the folder.
   *
   * @param config the {@code config.json} of the float model
   * @throws InputException where the configuration cannot take the layout or the folder cannot be
   *     written
   */
  public static void write(Path target, Path config, List<Weight> weights) {
    ModelConfig model = ModelConfig.read(config.toAbsolutePath().getParent());
    List<TensorSpec> specs = new ArrayList<>();
    TreeSet<String> ignored = new TreeSet<>(Names.ORDER);
    ignored.add("lm_head"); // readers want it named even where a model has none
    for (Weight w : weights) {
      if (w.integers() == null) {
        specs.add(new TensorSpec(w.name(), SafetensorsDtype.F32, w.shape()));
        if (w.linear()) {
          ignored.add(WeightNames.module(w.name()));
        }
      } else {
        specs.add(new TensorSpec(w.name(), SafetensorsDtype.I8, w.shape()));
        specs.add(
            new TensorSpec(
                LinearForm.scaleName(w.name()),
                SafetensorsDtype.F32,
                List.of(w.shape().get(0), 1L)));
      }
    }
    try (AtomicFolder folder = AtomicFolder.create(target)) {
      try (FileChannel file = folder.create(Checkpoint.SINGLE)) {
        SafetensorsWriter writer =
            new SafetensorsWriter(
                file, e -> folder.failure(Checkpoint.SINGLE, e), specs, Map.of("format", "pt"));
        for (Weight w : weights) {
          if (w.integers() == null) {
            writer.append(w.name(), w.floats());
          } else {
            writer.append(w.name(), w.integers());
            writer.append(LinearForm.scaleName(w.name()), w.scales());
          }
        }
        writer.finish();
      } catch (IOException e) {
        throw folder.failure(Checkpoint.SINGLE, e);
      }
      byte[] json = model.with(CompressedTensorsConfig.of(LinearForm.INT8, List.copyOf(ignored)));
      folder.write(ModelConfig.FILE, ByteBuffer.wrap(json));
      folder.commit();
    }
  }
}
