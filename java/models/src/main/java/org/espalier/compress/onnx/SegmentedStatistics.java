package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.format.onnx.OnnxModel;

/**
 * What the products of a model read on examples, seen {@linkplain ModelSegments segment} by segment: each runs on all examples
 * before the next is loaded, so that memory does not grow with the number of layers.
 */
final class SegmentedStatistics {
  /** Is given the statistics of some sites, which it may take away. */
  @FunctionalInterface
  interface Receiver {
    /**
     * @param part the model that the sites were seen in
     * @param statistics of each site, but for those that no example reaches
     */
    void accept(
        OnnxModel part, List<ProductSite> sites, Map<ProductSite, ActivationStatistics> statistics);
  }

  private final OnnxModel model;
  private final List<ModelSegments.Segment> segments;
  private final int bits;

  /**
   * @param segments of the model
   * @param bits that weights are rounded to
   */
  SegmentedStatistics(OnnxModel model, List<ModelSegments.Segment> segments, int bits) {
    this.model = model;
    this.segments = segments;
    this.bits = bits;
  }

  /**
   * Sees them.
   *
   * @param source runs the model as a whole where it cannot {@linkplain ActivationSource#hold go on}
   * @param sites of a segment, a model of its own that may be rewritten before it runs
   * @param receiver of all sites, several times where the statistics of a segment would take more than a quarter of this
   *     JVM's heap
   * @throws org.espalier.InputException when an activation is not finite or there are no examples, naming it
   */
  void see(
      ActivationSource source,
      Progress progress,
      Function<OnnxModel, List<ProductSite>> sites,
      Receiver receiver) {
    List<ModelSegments.Segment> parts = source.canHold() ? segments : ModelSegments.whole(model);
    Set<String> seen = new HashSet<>();
    try (Passage examples = new Passage(source)) {
      for (ModelSegments.Segment s : parts) {
        OnnxModel part = model.part(s.nodes(), examples.values(model));
        List<ProductSite> all = new ArrayList<>(sites.apply(part));
        all.removeIf(site -> !seen.add(site.products.get(0).output));
        // Of a weight that is multiplied with a constant too, the other product tells more.
        Set<String> fixed = outputs(s.nodes().subList(0, s.fixed()));
        all.sort(Comparator.comparing(site -> fixed.contains(site.products.get(0).output)));
        if (all.isEmpty() && s.held().isEmpty()) {
          continue;
        }
        List<List<ProductSite>> groups =
            all.isEmpty()
                ? List.of(all)
                : ActivationStatistics.parts(
                    all, site -> ActivationStatistics.bytesOfRounding(site.channels, bits));
        for (List<ProductSite> group : groups) {
          boolean goesOn = !s.held().isEmpty() && group == groups.get(groups.size() - 1);
          examples.next = goesOn ? s.held() : null;
          receiver.accept(
              part, group, new ToldActivations(examples, progress).statistics(part, group, bits));
        }
        if (parts.size() > 1) {
          System.gc(); // weights that were floats lie outside of the heap until then
        }
      }
    }
  }

  private static Set<String> outputs(List<NodeProto> nodes) {
    return nodes.stream().flatMap(n -> n.getOutputList().stream()).collect(Collectors.toSet());
  }

  /** Examples that pass one segment after the other. */
  private static final class Passage implements ActivationSource, AutoCloseable {
    private ActivationSource at;
    private Held held;

    /** What is held behind the next run; null: nothing, for the segment runs again or is the last. */
    private Set<String> next;

    Passage(ActivationSource source) {
      at = source;
    }

    /** What the examples hold for the segment that is next. */
    List<ValueInfoProto> values(OnnxModel model) {
      return held == null ? model.inputs() : held.values();
    }

    @Override
    public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
      if (next == null) {
        at.run(model, activations, receiver);
      } else {
        held = at.hold(model, activations, receiver, next);
        at = held;
      }
    }

    @Override
    public int count() {
      return at.count();
    }

    @Override
    public void close() {
      if (held != null) {
        held.close();
      }
    }
  }
}
