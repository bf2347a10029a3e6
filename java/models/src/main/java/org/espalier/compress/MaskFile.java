package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.espalier.InputException;
import org.espalier.format.Names;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;

/**
 * Pruning masks in a safetensors file, one bit a weight.
 *
 * <p>The file has one tensor for each masked weight tensor, under the same name: dtype U8, shape
 * {@code [ceil(n / 8)]} for n weights. Weight i, counted in row-major order, is bit {@code i % 8},
 * the least significant being 0, of byte {@code i / 8}; 1 means kept, 0 means pruned. The unused
 * high bits of the last byte are 0. {@code __metadata__} has {@code format} =
 * {@code espalier-mask} and for each tensor the key {@code shape:NAME} whose value is the shape of
 * the weights as decimal numbers with commas between ({@code 30522,384}; empty for a scalar).
 *
 * <p>Instances can be read by several threads at once.
 */
public final class MaskFile implements AutoCloseable {
  private static final String FORMAT_KEY = "format";
  private static final String FORMAT = "espalier-mask";
  private static final String SHAPE = "shape:";

  private final SafetensorsFile file;

  private MaskFile(SafetensorsFile file) {
    this.file = file;
  }

  /**
   * Opens and checks a file of masks.
   *
   * @throws InputException if it is not one, or a mask's bits do not fit its shape
   */
  public static MaskFile open(Path path) {
    SafetensorsFile file = SafetensorsFile.open(path);
    try {
      if (!FORMAT.equals(file.metadata().get(FORMAT_KEY))) {
        throw new InputException(
            path
                + " is not a file of masks: its metadata does not say "
                + FORMAT_KEY
                + " = "
                + FORMAT);
      }
      for (TensorInfo mask : file.tensors()) {
        check(file, mask);
      }
      return new MaskFile(file);
    } catch (RuntimeException e) {
      file.close();
      throw e;
    }
  }

  private static void check(SafetensorsFile file, TensorInfo mask) {
    String where = file.path() + ": mask " + Names.quote(mask.name());
    String text = file.metadata().get(SHAPE + mask.name());
    if (text == null) {
      throw new InputException(where + " has no shape in the metadata");
    }
    long weights = 1;
    try {
      for (String size : text.isEmpty() ? new String[0] : text.split(",", -1)) {
        if (!size.matches("[0-9]+")) {
          throw new NumberFormatException("not a size");
        }
        weights = Math.multiplyExact(weights, Long.parseLong(size));
      }
    } catch (NumberFormatException | ArithmeticException e) {
      throw new InputException(
          where + " has the shape " + Names.quote(text) + "; sizes with commas are right", e);
    }
    long bytes = bytes(weights);
    if (mask.dtype() != SafetensorsDtype.U8 || !mask.shape().equals(List.of(bytes))) {
      throw new InputException(
          where
              + " is "
              + mask.dtype()
              + mask.shape()
              + "; U8["
              + bytes
              + "] is right for weights of shape ["
              + text
              + "]");
    }
    int used = (int) (weights % 8);
    if (used != 0) {
      ByteBuffer last = ByteBuffer.allocate(1);
      file.read(mask, bytes - 1, last);
      if ((last.get(0) & 0xff) >> used != 0) {
        throw new InputException(where + " has bits beyond its " + weights + " weights");
      }
    }
  }

  private static long bytes(long weights) {
    return weights / 8 + (weights % 8 == 0 ? 0 : 1);
  }

  /** What a file of masks for these weights declares. */
  public static List<TensorSpec> specs(Collection<TensorInfo> weights) {
    return weights.stream()
        .map(w -> new TensorSpec(w.name(), SafetensorsDtype.U8, List.of(bytes(w.elements()))))
        .toList();
  }

  /** The metadata of a file of masks for these weights. */
  public static Map<String, String> metadata(Collection<TensorInfo> weights) {
    Map<String, String> metadata = new TreeMap<>();
    metadata.put(FORMAT_KEY, FORMAT);
    for (TensorInfo tensor : weights) {
      metadata.put(SHAPE + tensor.name(), shape(tensor.shape()));
    }
    return metadata;
  }

  private static String shape(List<Long> shape) {
    return String.join(",", shape.stream().map(String::valueOf).toList());
  }

  /** The file that holds the bits. */
  public SafetensorsFile file() {
    return file;
  }

  /** The masks, one a masked tensor, in the order of names. */
  public Collection<TensorInfo> masks() {
    return file.tensors();
  }

  /**
   * The mask of a tensor of weights, or null where it has none.
   *
   * @throws InputException if the mask was made for another shape
   */
  public TensorInfo maskOf(TensorInfo weights) {
    TensorInfo mask = file.tensor(weights.name());
    if (mask != null) {
      String expected = file.metadata().get(SHAPE + weights.name());
      if (!shape(weights.shape()).equals(expected)) {
        throw new InputException(
            file.path()
                + ": mask "
                + Names.quote(weights.name())
                + " is for weights of shape ["
                + expected
                + "], but the model has "
                + weights.shape());
      }
    }
    return mask;
  }

  @Override
  public void close() {
    file.close();
  }
}
