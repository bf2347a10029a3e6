package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.espalier.compress.onnx.channels.HiddenChannels.Cache;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;

/**
 * Finds {@link HiddenChannels}: walks from the output of a product over everything that has the same channels. How many
 * numbers of the product a channel is shows on the way, where a Reshape or Split divides them; then the walk begins
 * anew.
 */
public final class ChannelSearch {
  private final ChannelGraph graph;
  private final boolean withCaches;
  private final Set<String> seen = new HashSet<>();
  private final Set<Set<Cache>> kept = new HashSet<>();

  /**
   * @param withCaches whether the keys and values of earlier tokens that the model takes and gives may have fewer heads
   */
  public ChannelSearch(OnnxModel model, boolean withCaches) {
    this.graph = new ChannelGraph(model);
    this.withCaches = withCaches;
  }

  /** The hidden channels of the model in graph order; those of a set of weights are found once. */
  public List<HiddenChannels> all() {
    List<HiddenChannels> found = new ArrayList<>();
    for (NodeProto n : graph.model.nodes()) {
      if (n.getOutputCount() > 0 && !seen.contains(n.getOutput(0)) && graph.numbers(n) > 0) {
        ChannelWalk walk = walk(n);
        if (walk != null) {
          seen.addAll(walk.values());
          found.add(walk.set());
        }
      }
    }
    return found;
  }

  /** The walk that finds the channels which a product makes; null if none does. */
  private ChannelWalk walk(NodeProto product) {
    Set<ChannelPlace> tried = new HashSet<>();
    Deque<ChannelPlace> tries = new ArrayDeque<>(List.of(whole(product)));
    while (!tries.isEmpty()) {
      ChannelPlace first = tries.remove();
      if (!tried.add(first)) {
        continue;
      }
      ChannelWalk walk = new ChannelWalk(graph, product, first);
      if (walk.found() && (walk.caches().isEmpty() || withCaches)) {
        return walk;
      }
      if (walk.found()) {
        kept.add(Set.copyOf(walk.caches()));
      }
      for (ChannelPlace finer : first.axis() == 1 ? walk.finer() : List.<ChannelPlace>of()) {
        tries.add(
            finer.layout().isEven()
                ? new ChannelPlace(
                    1, first.repeat() * finer.repeat(), first.block() * finer.block())
                : finer);
      }
    }
    return null;
  }

  /** Where a product makes channels if each number that it makes is one. */
  private ChannelPlace whole(NodeProto product) {
    Use use = graph.use(product);
    return use != null && use.kind() == Kind.CONV
        ? ChannelPlace.image(graph.model.constant(graph.weight(product).value()).dims())
        : new ChannelPlace(1);
  }

  /** After {@link #all}: of how many attentions heads could go if keys and values of earlier tokens had fewer. */
  public int kept() {
    return kept.size();
  }
}
