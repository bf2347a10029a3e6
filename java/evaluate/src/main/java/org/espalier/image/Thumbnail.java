package org.espalier.image;

import java.awt.image.BufferedImage;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.Base64;
import javax.imageio.ImageIO;
import org.espalier.InputException;

/** Small pictures of images, for pages. */
public final class Thumbnail {
  private Thumbnail() {}

  /**
   * A picture of an image, upright.
   *
   * @param side pixels of the longer side, which a smaller image keeps
   * @return a URL that holds it as PNG
   * @throws InputException where the file is no image any more
   */
  public static String url(Path file, int side) {
    Pixels image = ImageFile.read(file, 3, ImageFile.ANY);
    double factor = Math.min(1, (double) side / Math.max(image.width(), image.height()));
    Pixels small =
        Resampling.BILINEAR.resize(
            image,
            Math.max(1, (int) Math.rint(factor * image.width())),
            Math.max(1, (int) Math.rint(factor * image.height())));
    BufferedImage made =
        new BufferedImage(small.width(), small.height(), BufferedImage.TYPE_3BYTE_BGR);
    int[] values = new int[small.values().length];
    for (int i = 0; i < values.length; i++) {
      values[i] = small.values()[i] & 255;
    }
    made.getRaster().setPixels(0, 0, small.width(), small.height(), values);
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    try {
      ImageIO.write(made, "png", out);
    } catch (IOException e) {
      throw new UncheckedIOException("memory takes what is written", e);
    }
    return "data:image/png;base64," + Base64.getEncoder().encodeToString(out.toByteArray());
  }
}
