package org.espalier.compress.onnx;

import java.nio.FloatBuffer;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.Map;
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
   * @throws InputException when an activation is not finite or never seen, naming it
   */
  Map<String, ActivationStatistics> statistics(
      OnnxModel model,
      Map<String, Integer> channels,
      BiFunction<String, FloatBuffer, FloatBuffer> rows) {
    Map<String, ActivationStatistics> statistics = new LinkedHashMap<>();
    channels.forEach((name, n) -> statistics.put(name, new ActivationStatistics(name, n)));
    run(
        model,
        statistics.keySet(),
        (name, shape, values) -> statistics.get(name).add(rows.apply(name, values)));
    statistics.values().forEach(ActivationStatistics::checkSeen);
    return statistics;
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
