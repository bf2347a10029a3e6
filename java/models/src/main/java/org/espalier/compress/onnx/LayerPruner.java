package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.compress.onnx.layers.LayerRemoval;
import org.espalier.compress.onnx.layers.LayerSearch;
import org.espalier.compress.onnx.layers.RepeatedLayer;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxModel;

/**
 * Removes layers of an ONNX model, such as the blocks of a transformer (depth pruning): what is left computes as before on fewer
 * layers, and is as much smaller and faster. Those go that the outputs miss least on some of the calibration examples: one after
 * another, each time the one without which, and without those that are gone, the outputs change least. Of each stack of layers
 * at least one stays. Weights stay as they are. Not safe for several threads.
 */
public final class LayerPruner {
  /** To see what is missed, so many of the examples are run, evenly spread. */
  public static final int SOME = 16;

  /** So many layers are tried for each that goes, those that were missed least before; all at first. */
  private static final int TRIED = 4;

  /**
   * What was removed.
   *
   * @param layers how many there were
   * @param gone which went, ascending, from 0 in graph order
   * @param error of the outputs now, on the examples that it was judged by: a share of their norm, the mean of the outputs'
   */
  public record Removed(int layers, List<Integer> gone, double error) {
    /** How many layers are left, for people. */
    public String summary() {
      return layers
          - gone.size()
          + " of "
          + layers
          + " layers (without "
          + gone.stream().map(String::valueOf).collect(Collectors.joining(", "))
          + ")";
    }
  }

  private final OnnxModel model;
  private final OneUse use;
  private final List<RepeatedLayer> layers;
  private final int count;

  private final Set<String> answers;

  /** The same, judged by the model's {@link Answers}. */
  public LayerPruner(OnnxModel model, double share) {
    this(model, share, Answers.of(model));
  }

  /**
   * @param model is changed by {@link #prune}
   * @param share of all layers that goes, above 0 and below 1; the nearest whole number
   * @param answers the outputs that tell what is missed, of its {@linkplain Answers#comparable comparable} ones; layers that others
   *     show stay
   * @throws InputException where the model has no layers that can go, or not so many
   */
  public LayerPruner(OnnxModel model, double share, Set<String> answers) {
    if (!(share > 0 && share < 1)) {
      throw new InputException(
          "a share of " + share + " of the layers; above 0 and below 1 is right");
    }
    this.model = model;
    this.use = new OneUse(model, "was made shallower");
    this.answers = Set.copyOf(answers);
    if (answers.isEmpty()) {
      throw new InputException(
          model.name() + " has no output of floats by which its layers could be judged");
    }
    layers = LayerSearch.find(model, answers);
    if (layers.isEmpty()) {
      throw new InputException(
          model.name()
              + " has no layers that follow each other with the same operators and shapes, each"
              + " with a residual sum, as the blocks of a transformer are");
    }
    count = (int) Math.rint(share * layers.size());
    if (count == 0) {
      throw new InputException(
          "a share of "
              + share
              + " of "
              + layers.size()
              + " layers is none; "
              + 1.0 / layers.size()
              + " is one");
    }
    checkCount(IntStream.range(0, layers.size()).filter(i -> obstacle(i) == null).boxed().toList());
  }

  private String obstacle(int layer) {
    return layers.get(layer).obstacle();
  }

  /** Whether as many can go as are to. */
  private void checkCount(List<Integer> removable) {
    int most = 0;
    for (int stack = 0; stack <= layers.get(layers.size() - 1).stack(); stack++) {
      int of = stack;
      int all = (int) layers.stream().filter(layer -> layer.stack() == of).count();
      int some = (int) removable.stream().filter(i -> layers.get(i).stack() == of).count();
      most += Math.min(some, all - 1);
    }
    if (count > most) {
      throw new InputException(
          model.name()
              + ": "
              + count
              + " of "
              + layers.size()
              + " layers are to go, of which "
              + most
              + " can"
              + layers.stream()
                  .filter(layer -> layer.obstacle() != null)
                  .findFirst()
                  .map(layer -> "; layer " + layers.indexOf(layer) + ": " + layer.obstacle())
                  .orElse("; of each stack one stays"));
    }
  }

  /**
   * Removes layers.
   *
   * @param source what the model will see
   * @param listener hears how far it is
   * @throws InputException if the examples do not fit the model
   * @throws IllegalStateException if layers were removed before: the model has others now
   */
  public Removed prune(ActivationSource source, Progress listener) {
    use.check();
    ActivationSource some = source.some(SOME);
    List<Integer> removable = sameShapes(some);
    checkCount(removable);
    OutputError error = new OutputError(ChannelPruner.floats(model), answers, some);
    int runs = removable.size() + (count - 1) * TRIED;
    int run = 0;
    Set<Integer> gone = new HashSet<>();
    Map<Integer, Double> missed = new HashMap<>();
    double now = 0;
    while (gone.size() < count) {
      List<Integer> tried =
          removable.stream()
              .filter(i -> !gone.contains(i) && !isLast(i, gone))
              .sorted(Comparator.comparingDouble(i -> missed.getOrDefault(i, 0.0)))
              .limit(gone.isEmpty() ? Integer.MAX_VALUE : TRIED)
              .toList();
      int best = -1;
      for (int layer : tried) {
        listener.at(Phase.MEASURE, Math.min(run++, runs), runs);
        Set<Integer> without = new HashSet<>(gone);
        without.add(layer);
        OnnxModel shallower = model.copy();
        LayerRemoval.apply(shallower, chosen(without));
        missed.put(layer, error.of(ChannelPruner.floats(shallower)));
        if (best < 0 || missed.get(layer) < missed.get(best)) {
          best = layer;
        }
      }
      gone.add(best);
      now = missed.get(best);
    }
    use.begin();
    LayerRemoval.apply(model, chosen(gone));
    SumShapes.say(model);
    model.check();
    return new Removed(layers.size(), gone.stream().sorted().toList(), now);
  }

  private Collection<RepeatedLayer> chosen(Set<Integer> places) {
    return places.stream().sorted().map(layers::get).toList();
  }

  /** Whether a layer is the only one left of its stack. */
  private boolean isLast(int layer, Set<Integer> gone) {
    int stack = layers.get(layer).stack();
    return IntStream.range(0, layers.size())
        .allMatch(i -> i == layer || layers.get(i).stack() != stack || gone.contains(i));
  }

  /** The layers that can go: what they make has the shape of what they read. */
  private List<Integer> sameShapes(ActivationSource some) {
    OnnxModel told = model.copy();
    OnnxModel.Names names = told.names();
    List<NodeProto> nodes = new ArrayList<>(told.nodes());
    Map<String, String> shapes = new HashMap<>();
    for (RepeatedLayer layer : layers) {
      for (String value : List.of(layer.input(), layer.output())) {
        shapes.computeIfAbsent(value, v -> addShape(v, names, nodes));
      }
    }
    told.setNodes(nodes);
    Map<String, List<FloatBuffer>> seen = new HashMap<>();
    some.run(
        ChannelPruner.floats(told),
        shapes.values(),
        (shape, dims, values) ->
            seen.computeIfAbsent(shape, name -> new ArrayList<>()).add(copy(values)));
    return IntStream.range(0, layers.size())
        .filter(i -> obstacle(i) == null)
        .filter(
            i ->
                seen.get(shapes.get(layers.get(i).input()))
                    .equals(seen.get(shapes.get(layers.get(i).output()))))
        .boxed()
        .toList();
  }

  /** Adds what tells the shape of a value, in floats, and gives its name. */
  private static String addShape(String value, OnnxModel.Names names, List<NodeProto> nodes) {
    String integers = names.unique(value + "_shape");
    String shape = names.unique(value + "_shape_real");
    nodes.add(Nodes.node("Shape", integers, value).build());
    nodes.add(
        Nodes.node("Cast", shape, integers)
            .addAttribute(Attributes.attribute("to", DataType.FLOAT_VALUE))
            .build());
    return shape;
  }

  private static FloatBuffer copy(FloatBuffer values) {
    return FloatBuffer.allocate(values.remaining()).put(values).flip();
  }
}
