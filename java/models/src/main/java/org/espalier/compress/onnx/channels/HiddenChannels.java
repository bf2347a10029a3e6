package org.espalier.compress.onnx.channels;

import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;

/**
 * Channels that only products with constant weights make and read, with operators between them that treat each
 * channel for itself: the inner width of a feed-forward block, the channels of images between convolutions, the heads
 * of an attention, of which each has several numbers. Where several queries share keys and values, a channel is
 * these with their queries, or one query of each such group. Nothing else of the graph knows how many there are, and
 * outside only who hands keys and values of earlier tokens to a decoder, so their number can change.
 *
 * @param name of the first weight that makes them
 * @param size how many there are
 * @param weights the weights that make them, as people call them
 * @param makers the outputs of the products that make them
 * @param slices the constants with entries of their own for each channel, weights that make and read them included
 * @param counts where the graph says how many there are
 * @param bounds where the graph says how long pieces of them are
 * @param attributes where nodes say how many there are
 * @param caches the inputs and outputs of the model that have them: keys and values of earlier tokens
 * @param readers the products that sum over them
 * @param depthwise the outputs of the depthwise convolutions among the operators
 * @param inner the outputs of the products of two values that have them, such as queries and keys
 * @param values the values of the graph that have them
 */
public record HiddenChannels(
    String name,
    int size,
    List<String> weights,
    Set<String> makers,
    List<Slice> slices,
    List<Count> counts,
    List<Bounds> bounds,
    List<Attribute> attributes,
    List<Cache> caches,
    List<Reader> readers,
    Set<String> depthwise,
    Set<String> inner,
    Set<String> values) {

  /**
   * A constant with an axis of the channels.
   *
   * @param node the output of the node that reads it
   * @param input which input of the node it is, or leads to
   * @param constant its name
   * @param layout which entries of the axis a channel has: one, the pixels of an image that was made flat, or the
   *     numbers of a head
   */
  public record Slice(String node, int input, String constant, int axis, ChannelLayout layout) {
    private Slice renamed(Map<String, Map<Integer, String>> inputs) {
      String now = inputs.getOrDefault(node, Map.of()).getOrDefault(input, constant);
      return new Slice(node, input, now, axis, layout);
    }
  }

  /**
   * A number in the shape that a Reshape or Expand makes.
   *
   * @param node the output of the Reshape or Expand
   * @param part which input of the Concat that makes the shape holds the number; −1 where the shape is a constant
   * @param numbers all of that input, or of the shape
   * @param index which of them it is
   * @param each how many numbers a channel counts for
   */
  public record Count(String node, int part, List<Long> numbers, int index, int each) {}

  /**
   * Numbers along the axis of the channels that a Split or Slice is told.
   *
   * @param node the first output of the node
   * @param input which input they are; −1 for the attribute {@code split}
   * @param each for how many each channel counts, of each number
   * @param rest what there is to that
   */
  public record Bounds(String node, int input, List<Integer> each, List<Integer> rest) {
    long[] of(int channels) {
      return IntStream.range(0, each.size())
          .mapToLong(i -> (long) channels * each.get(i) + rest.get(i))
          .toArray();
    }
  }

  /**
   * An attribute that counts the channels, or all of whose numbers do, where the node has it.
   *
   * @param node the output of the node
   * @param each how many a channel counts for
   */
  public record Attribute(String node, String name, int each) {}

  /**
   * An input or output of the model with an axis of the channels.
   *
   * @param axis counted from the end, 1 for the last
   * @param each how many numbers of the axis a channel has
   */
  public record Cache(String value, int axis, int each) {}

  /**
   * A product that sums over the channels.
   *
   * @param activation what it reads
   * @param node its output
   * @param weight what people call its weight
   * @param slice the constant that holds the weight
   * @param bias the output of the node that adds a constant to it, itself included; null where none does, or not
   *     to the same effect everywhere
   * @param image whether the channels are the second axis of the activation; else they are the last
   */
  public record Reader(
      String activation, String node, String weight, Slice slice, String bias, boolean image) {
    /** How many numbers of the activation a channel is: of an image each pixel is a row. */
    public int group() {
      return image ? 1 : slice.layout().each();
    }

    /** Whether the activation has a channel's numbers in several places. */
    public boolean isScattered() {
      return !image && slice.layout().repeat() > 1;
    }
  }

  /** How many numbers a channel is: 1, of a head several. */
  public int numbers() {
    return readers.stream().mapToInt(Reader::group).max().orElse(1);
  }

  /**
   * The same where nodes read other constants now.
   *
   * @param inputs what an input of a node is now, by the output of the node
   */
  public HiddenChannels renamed(Map<String, Map<Integer, String>> inputs) {
    return new HiddenChannels(
        name,
        size,
        weights,
        makers,
        slices.stream().map(slice -> slice.renamed(inputs)).toList(),
        counts,
        bounds,
        attributes,
        caches,
        readers.stream()
            .map(
                r ->
                    new Reader(
                        r.activation(),
                        r.node(),
                        r.weight(),
                        r.slice().renamed(inputs),
                        r.bias(),
                        r.image()))
            .toList(),
        depthwise,
        inner,
        values);
  }
}
