package org.espalier.image;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.List;
import org.espalier.InputException;

/** Makes of images what an input of a model is fed. Immutable and for several threads. */
public final class ImageTensors {
  /** The side of an image where neither the model nor the processor has one. */
  private static final int USUAL_SIDE = 224;

  private final ImageProcessor processor;
  private final ImageInput input;
  private final long[][] bits;

  /**
   * @throws InputException where the processor does not make what the model takes
   */
  public ImageTensors(ImageProcessor processor, ImageInput input) {
    this.processor = processor;
    this.input = input;
    bits = input.bits(processor);
    int[] size = processor.size();
    if (size != null && !fits(size[0], size[1])) {
      throw new InputException(
          processor.file()
              + " makes images of "
              + size[0]
              + " x "
              + size[1]
              + " (height x width); the model takes "
              + input.height()
              + " x "
              + input.width());
    }
  }

  /**
   * What the input is fed of an image.
   *
   * @param shape without the batch
   * @param bytes little-endian, of the input's type and layout
   */
  public record Image(List<Long> shape, byte[] bytes) {}

  /** The input that it is for. */
  public ImageInput input() {
    return input;
  }

  ImageProcessor processor() {
    return processor;
  }

  /** Whether the model or the processor says how large each image is that is fed. */
  public boolean isOfOneSize() {
    return processor.size() != null || input.height() > 0 && input.width() > 0;
  }

  private boolean fits(int height, int width) {
    return (input.height() == 0 || input.height() == height)
        && (input.width() == 0 || input.width() == width);
  }

  /**
   * Reads a file.
   *
   * @throws InputException where it is no image, or none of a size that the model takes
   */
  public Image read(Path file) {
    return of(pixels(file));
  }

  /**
   * The same of what a file holds.
   *
   * @param name what messages call it
   */
  public Image read(byte[] content, String name) {
    return of(sized(ImageFile.read(content, name, input.channels(), size(name)), name));
  }

  /** A black image of the size that the model takes. */
  public Image black() {
    int[] size = processor.size();
    int height = input.height() > 0 ? input.height() : size != null ? size[0] : USUAL_SIDE;
    int width = input.width() > 0 ? input.width() : size != null ? size[1] : USUAL_SIDE;
    return of(Pixels.black(width, height, input.channels()));
  }

  /** The image of a file in the size that is fed. */
  Pixels pixels(Path file) {
    String name = file.toString();
    return sized(ImageFile.read(file, input.channels(), size(name)), name);
  }

  /** What size an image must have before it is decoded. */
  private ImageFile.Size size(String name) {
    return processor.changesSizes()
        ? ImageFile.ANY
        : (height, width) -> requireFits(height, width, name);
  }

  private Pixels sized(Pixels image, String name) {
    Pixels pixels;
    try {
      pixels = processor.sized(image);
    } catch (InputException e) {
      throw new InputException("the image " + name + ": " + e.getMessage(), e);
    }
    requireFits(pixels.height(), pixels.width(), name);
    return pixels;
  }

  private void requireFits(int height, int width, String name) {
    if (!fits(height, width)) {
      throw new InputException(
          "the image "
              + name
              + " has "
              + height
              + " x "
              + width
              + " pixels (height x width); the model takes "
              + input.height()
              + " x "
              + input.width()
              + ", which a size in "
              + processor.file()
              + " makes");
    }
  }

  /** What is fed of an image in its size. */
  Image of(Pixels pixels) {
    int channels = input.channels();
    byte[] values = pixels.values();
    int count = values.length / channels;
    int size = (int) input.type().bytes(1);
    ByteBuffer to =
        ByteBuffer.allocate(Math.multiplyExact(values.length, size)).order(ByteOrder.LITTLE_ENDIAN);
    for (int c = 0; c < channels; c++) {
      int from = processor.channel(c, channels);
      int at = input.channelsFirst() ? c * count * size : c * size;
      int step = input.channelsFirst() ? size : channels * size;
      for (int i = 0; i < count; i++, at += step, from += channels) {
        long value = bits[c][values[from] & 255];
        switch (size) {
          case 4 -> to.putInt(at, (int) value);
          case 2 -> to.putShort(at, (short) value);
          default -> to.put(at, (byte) value);
        }
      }
    }
    return new Image(input.shape(pixels), to.array());
  }
}
