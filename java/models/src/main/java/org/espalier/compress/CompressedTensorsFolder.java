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
import org.espalier.format.safetensors.TensorInfo;
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
   * @param name as in a checkpoint; that of a weight in integers ends in {@code .weight}
   * @param shape of a weight in integers [out, in]
   * @param floats its values, little-endian float32; null where it is integers
   * @param integers null where it is floats
   * @param linear whether it is the weight of a linear layer
   */
  public record Weight(
      String name, List<Long> shape, ByteBuffer floats, Integers integers, boolean linear) {}

  /**
   * A weight in integers.
   *
   * @param values as the form stores them, row-major: a byte each, or packed in words
   * @param scales [out, blocks], little-endian float32
   * @param zeroPoints [out, blocks], a byte each; null where the form is symmetric
   */
  public record Integers(ByteBuffer values, ByteBuffer scales, byte[] zeroPoints) {}

  /**
   * Checks that a model can take the layout.
   *
   * @param config its {@code config.json}
   * @throws InputException where it is quantized already, or its layers are none that the layout reaches
   */
  public static void check(Path config) {
    ModelConfig.read(config);
  }

  /**
   * Writes the folder.
   *
   * @param config the {@code config.json} of the float model
   * @param form of the weights in integers
   * @throws InputException where the configuration cannot take the layout or the folder cannot be
   *     written
   */
  public static void write(Path target, Path config, LinearForm form, List<Weight> weights) {
    ModelConfig model = ModelConfig.read(config);
    List<TensorSpec> specs = new ArrayList<>();
    TreeSet<String> ignored = new TreeSet<>(Names.ORDER);
    ignored.add("lm_head"); // readers want it named even where a model has none
    for (Weight w : weights) {
      if (w.integers() != null) {
        specs.addAll(form.tensors(matrix(w)));
        continue;
      }
      specs.add(new TensorSpec(w.name(), SafetensorsDtype.F32, w.shape()));
      if (w.linear()) {
        ignored.add(WeightNames.module(w.name()));
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
            write(w, form, writer);
          }
        }
        writer.finish();
      } catch (IOException e) {
        throw folder.failure(Checkpoint.SINGLE, e);
      }
      byte[] json = model.with(CompressedTensorsConfig.of(form, List.copyOf(ignored)));
      folder.write(ModelConfig.FILE, ByteBuffer.wrap(json));
      folder.commit();
    }
  }

  private static void write(Weight w, LinearForm form, SafetensorsWriter writer) {
    String name = w.name();
    writer.append(LinearForm.scaleName(name), w.integers().scales());
    if (!form.isPacked()) {
      writer.append(name, w.integers().values());
      return;
    }
    writer.append(LinearForm.packedName(name), w.integers().values());
    writer.append(LinearForm.shapeName(name), LinearForm.shapeOf(matrix(w)));
    if (!form.symmetric()) {
      ZeroPointWords words =
          new ZeroPointWords(
              w.shape().get(1) / form.width(w.shape().get(1)),
              bytes -> writer.append(LinearForm.zeroPointName(name), bytes));
      for (byte zeroPoint : w.integers().zeroPoints()) {
        words.add(zeroPoint);
      }
      words.finish();
    }
  }

  private static TensorInfo matrix(Weight w) {
    long elements = w.shape().get(0) * w.shape().get(1);
    return new TensorInfo(
        w.name(), SafetensorsDtype.F32, w.shape(), 0, SafetensorsDtype.F32.bytes(elements));
  }
}
