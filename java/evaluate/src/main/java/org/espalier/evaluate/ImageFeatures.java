package org.espalier.evaluate;

import java.nio.file.Path;
import org.espalier.InputException;
import org.espalier.image.ImageTensors;

/** Features of images. */
public abstract sealed class ImageFeatures extends EncoderFeatures
    permits EncodedImages, PixelFeatures {
  private final ImageTensors tensors;

  ImageFeatures(ImageTensors tensors) {
    this.tensors = tensors;
  }

  final ImageTensors tensors() {
    return tensors;
  }

  /** What becomes of an image. */
  abstract float[] features(ImageTensors.Image image);

  /**
   * The features of a file.
   *
   * @throws InputException where it is no image
   * @throws IllegalStateException after close
   */
  public final float[] of(Path file) {
    return whileOpen(() -> features(tensors.read(file)));
  }

  /**
   * The same of what a file holds.
   *
   * @param name what messages call it
   */
  public final float[] of(byte[] content, String name) {
    return whileOpen(() -> features(tensors.read(content, name)));
  }
}
