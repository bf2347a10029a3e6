package org.espalier.image;

/**
 * An image of one byte a value.
 *
 * @param channels 3 for red, green and blue; 1 for grey
 * @param values row by row from the top, pixel by pixel
 */
record Pixels(int width, int height, int channels, byte[] values) {
  static Pixels black(int width, int height, int channels) {
    return new Pixels(
        width, height, channels, new byte[Math.multiplyExact(width * channels, height)]);
  }

  /** The middle of the image, with black around it where it is smaller. */
  Pixels middle(int wide, int high) {
    if (wide == width && high == height) {
      return this;
    }
    Pixels made = black(wide, high, channels);
    int left = Math.floorDiv(width - wide, 2);
    int top = Math.floorDiv(height - high, 2);
    int from = Math.max(0, left);
    int count = Math.min(width, left + wide) - from;
    for (int y = Math.max(0, top); y < Math.min(height, top + high); y++) {
      System.arraycopy(
          values,
          (y * width + from) * channels,
          made.values,
          ((y - top) * wide + from - left) * channels,
          count * channels);
    }
    return made;
  }

  /** The shades of grey of a coloured image, as ITU-R BT.601 weighs colours; a grey image itself. */
  Pixels grey() {
    if (channels == 1) {
      return this;
    }
    Pixels made = black(width, height, 1);
    for (int i = 0; i < made.values.length; i++) {
      int sum = 19595 * value(3 * i) + 38470 * value(3 * i + 1) + 7471 * value(3 * i + 2);
      made.values[i] = (byte) (sum + 0x8000 >> 16); // weights of 16 bits after the point
    }
    return made;
  }

  private int value(int i) {
    return values[i] & 255;
  }

  /**
   * The image as its camera was held.
   *
   * @param orientation of EXIF, 1 to 8
   */
  Pixels upright(int orientation) {
    if (orientation == 1) {
      return this;
    }
    boolean turned = orientation > 4;
    Pixels made = turned ? black(height, width, channels) : black(width, height, channels);
    boolean right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    boolean bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (int y = 0; y < made.height; y++) {
      for (int x = 0; x < made.width; x++) {
        int column = turned ? y : x;
        int row = turned ? x : y;
        column = right ? width - 1 - column : column;
        row = bottom ? height - 1 - row : row;
        System.arraycopy(
            values,
            (row * width + column) * channels,
            made.values,
            (y * made.width + x) * channels,
            channels);
      }
    }
    return made;
  }
}
