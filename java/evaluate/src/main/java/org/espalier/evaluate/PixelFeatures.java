package org.espalier.evaluate;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import org.espalier.InputException;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.image.ImageInput;
import org.espalier.image.ImageProcessor;
import org.espalier.image.ImageTensors;

/** The values of images as a model takes them, which itself learns, with no encoder in front. */
public final class PixelFeatures extends ImageFeatures {
  private final int width;

  /**
   * @param input of the model that learns
   * @throws InputException where that is not of float32, or nothing says how large images are
   */
  public PixelFeatures(ImageProcessor processor, ImageInput input) {
    super(new ImageTensors(processor, input));
    if (input.type() != SafetensorsDtype.F32) {
      throw new InputException("a model that learns takes images of F32, not " + input.type());
    }
    if (!tensors().isOfOneSize()) {
      throw new InputException(
          "the model leaves the size of images open, and "
              + processor.file()
              + " does not say it: size, with height and width, or crop_size does");
    }
    width = tensors().black().bytes().length / Float.BYTES;
  }

  @Override
  public int width() {
    return width;
  }

  @Override
  float[] features(ImageTensors.Image image) {
    FloatBuffer values =
        ByteBuffer.wrap(image.bytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
    float[] features = new float[values.remaining()];
    values.get(features);
    return features;
  }

  @Override
  void release() {}
}
