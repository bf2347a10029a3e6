package org.espalier.compress.onnx;

import java.util.Collection;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.format.onnx.OnnxModel;

/** A source of activations that reports the progress of its runs. */
record ToldActivations(ActivationSource source, Progress progress) implements ActivationSource {
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
