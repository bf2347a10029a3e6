package org.espalier.compress.onnx;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.BiFunction;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.format.onnx.OnnxModel;

/** A source of activations that reports the progress of its runs. */
record ToldActivations(ActivationSource source, Progress progress) implements ActivationSource {
  /**
   * Sees activations of a model on all examples.
   *
   * @param channels of each activation, by its name
   * @param rows makes rows of channels of the values of an activation with that name
   * @return the statistics of each, {@linkplain ActivationStatistics#assume assumed} of one that no example reaches
   * @throws InputException when an activation is not finite or there are no examples, naming it
   */
  Map<String, ActivationStatistics> statistics(
      OnnxModel model,
      Map<String, Integer> channels,
      BiFunction<String, FloatBuffer, FloatBuffer> rows) {
    Map<String, ActivationStatistics> statistics = new LinkedHashMap<>();
    channels.forEach((name, n) -> statistics.put(name, new ActivationStatistics(name, n)));
    boolean[] ran = {false};
    run(
        model,
        statistics.keySet(),
        (name, shape, values) -> {
          ran[0] = true;
          statistics.get(name).add(rows.apply(name, values));
        });
    ActivationStatistics.assume(statistics.values(), ran[0]);
    return statistics;
  }

  /**
   * Sees what the products of sites read on all examples.
   *
   * @param sites that are {@linkplain ProductSite#isSeen seen}
   * @param bits that their weights are rounded to
   * @return the statistics of each, but for those that no example reaches: in branches, or of experts that none chooses
   * @throws InputException when an activation is not finite or there are no examples, naming it
   */
  Map<ProductSite, ActivationStatistics> statistics(
      OnnxModel model, List<ProductSite> sites, int bits) {
    Map<ProductSite, ActivationStatistics> all = new LinkedHashMap<>();
    Map<String, List<ActivationStatistics>> shown = new LinkedHashMap<>();
    Map<String, List<ActivationStatistics>> inBranches = new HashMap<>();
    Set<String> readers = new HashSet<>();
    for (ProductSite s : sites) {
      ActivationStatistics x = ActivationStatistics.ofRounding(s.activation(), s.channels, bits);
      all.put(s, x);
      for (String value : s.activations) {
        (s.inner ? inBranches : shown).computeIfAbsent(value, v -> new ArrayList<>()).add(x);
      }
      if (s.inner) {
        s.products.forEach(p -> readers.addAll(p.outputs));
      }
    }
    OnnxModel seen = model;
    if (!readers.isEmpty()) {
      seen = model.copy();
      BranchValues.liftInputs(seen, readers)
          .forEach((name, value) -> shown.put(name, inBranches.get(value)));
    }
    boolean[] ran = {false};
    run(
        seen,
        shown.keySet(),
        (name, shape, values) -> {
          ran[0] = true;
          shown.get(name).forEach(x -> x.add(values.duplicate()));
        });
    if (!ran[0]) {
      all.values().forEach(ActivationStatistics::checkSeen);
    }
    all.values().removeIf(x -> x.examples() == 0);
    return all;
  }

  @Override
  public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
    long[] received = {0};
    source.run(
        model,
        activations,
        (activation, shape, values) -> {
          progress.at(Phase.CALIBRATE, received[0]++ / activations.size(), count());
          receiver.accept(activation, shape, values);
        });
  }

  @Override
  public int count() {
    return source.count();
  }

  @Override
  public ActivationSource some(int count) {
    return new ToldActivations(source.some(count), progress);
  }
}
