package org.espalier.format.onnx;

/** Where the channels of images are in what a model is fed. */
public enum ImageLayout {
  /** [batch, channels, height, width]. */
  CHANNELS_FIRST,
  /** [batch, height, width, channels]. */
  CHANNELS_LAST;

  /**
   * The layout of a tensor of four axes: its channels are three, or one, and where both axes may hold them they are first.
   *
   * @param second the size of the axis after the batch; 0 where it is open
   * @param last the size of the last axis; 0 where it is open
   * @return null where neither can be channels
   */
  public static ImageLayout of(long second, long last) {
    if (isChannels(second)) {
      return CHANNELS_FIRST;
    }
    if (isChannels(last)) {
      return CHANNELS_LAST;
    }
    return second == 0 ? CHANNELS_FIRST : null;
  }

  /** Whether an image has so many channels: 3, or 1 of shades of grey. */
  public static boolean isChannels(long size) {
    return size == 1 || size == 3;
  }
}
