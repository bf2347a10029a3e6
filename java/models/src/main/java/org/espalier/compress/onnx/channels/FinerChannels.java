package org.espalier.compress.onnx.channels;

import java.util.ArrayList;
import java.util.List;

/**
 * Where the channels would be in place of the last axis, as a whole, if they were those of an axis that was met: fewer
 * than was thought, and each of several numbers. Not safe for several threads.
 */
final class FinerChannels {
  private static final ChannelPlace WHOLE = new ChannelPlace(1);

  private final int size;
  private final List<ChannelPlace> places = new ArrayList<>();

  /**
   * @param size how many channels were looked for
   */
  FinerChannels(int size) {
    this.size = size;
  }

  /** All that was added, in this order. */
  List<ChannelPlace> places() {
    return places;
  }

  /**
   * Adds the place where of each group of so many numbers one after the other all are a channel's, and all of that comes
   * several times, if the channels can be of that.
   */
  void add(long repeat, long block) {
    if (size % (repeat * block) == 0 && size > repeat * block) {
      places.add(new ChannelPlace(1, (int) repeat, (int) block));
    }
  }

  /**
   * Adds what a layout on the axis of the channels makes of the last axis.
   *
   * @param now where a value has those that were looked for
   * @param layout of the finer ones on the same axis
   */
  void add(ChannelPlace now, ChannelLayout layout) {
    if (layout.isEven()) {
      if (layout.repeat() % now.repeat() == 0 && layout.block() % now.block() == 0) {
        add(layout.repeat() / now.repeat(), layout.block() / now.block());
      }
    } else if (now.equals(WHOLE)) {
      places.add(new ChannelPlace(1, layout));
    }
  }
}
