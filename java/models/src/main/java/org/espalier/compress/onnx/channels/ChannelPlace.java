package org.espalier.compress.onnx.channels;

/**
 * Where a value has channels.
 *
 * @param axis counted from the end, 1 for the last
 * @param layout which numbers of the axis are theirs
 */
record ChannelPlace(int axis, ChannelLayout layout) {
  ChannelPlace(int axis) {
    this(axis, 1, 1);
  }

  ChannelPlace(int axis, int repeat, int block) {
    this(axis, new ChannelLayout(repeat, block));
  }

  /** Where images have channels that a convolution of a weight reads or makes. */
  static ChannelPlace image(long[] weight) {
    return new ChannelPlace(weight.length - 1);
  }

  /** The same on another axis. */
  ChannelPlace at(int other) {
    return new ChannelPlace(other, layout);
  }

  int repeat() {
    return layout.repeat();
  }

  int block() {
    return layout.block();
  }

  /** How many numbers of the axis a channel has. */
  int each() {
    return layout.each();
  }

  /** How long the axis is, of so many channels. */
  long length(int size) {
    return layout.length(size);
  }
}
