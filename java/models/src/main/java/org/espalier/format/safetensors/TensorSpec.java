package org.espalier.format.safetensors;

import java.util.List;
import org.espalier.format.Names;

/**
 * A tensor that is to be written.
 *
 * @param name the tensor's name, unique in its file and not {@code __metadata__}
 * @param dtype the element type
 * @param shape the sizes, outermost first; empty for a scalar
 */
public record TensorSpec(String name, SafetensorsDtype dtype, List<Long> shape) {

  /**
   * @throws IllegalArgumentException if the name is reserved, a size is negative or the bytes
   *     cannot be counted
   */
  public TensorSpec {
    shape = List.copyOf(shape);
    if (name.equals(Header.METADATA)) {
      throw new IllegalArgumentException(name + " is reserved for the metadata");
    }
    if (!Names.isEncodable(name)) {
      throw new IllegalArgumentException(Names.quote(name) + " holds a lone surrogate");
    }
    for (long size : shape) {
      if (size < 0) {
        throw new IllegalArgumentException(Names.quote(name) + " has a negative size: " + shape);
      }
    }
    try {
      dtype.bytes(TensorInfo.elements(shape));
    } catch (ArithmeticException e) {
      throw new IllegalArgumentException(Names.quote(name) + ": " + e.getMessage(), e);
    }
  }

  /** The specification of a tensor that was read. */
  public static TensorSpec of(TensorInfo info) {
    return new TensorSpec(info.name(), info.dtype(), info.shape());
  }

  /** The number of bytes. */
  public long bytes() {
    return dtype.bytes(TensorInfo.elements(shape));
  }
}
