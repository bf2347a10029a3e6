package org.espalier.evaluate;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.OnnxModel;

/** Runs any model in ONNX Runtime on tensors for all its inputs, one example after the other. */
public final class TensorActivations implements ActivationSource {
  private final List<Map<String, OnnxTensor>> examples;
  private final int threads;

  /**
   * A source of activations.
   *
   * @param examples at least one; each holds all inputs of the model by name, and its owner closes
   *     them when this source is not used any more
   * @param threads threads of one run, at least 1
   */
  public TensorActivations(List<Map<String, OnnxTensor>> examples, int threads) {
    if (examples.isEmpty()) {
      throw new InputException("calibration needs at least one example");
    }
    this.examples = List.copyOf(examples);
    this.threads = threads;
  }

  @Override
  public boolean canHold() {
    return true;
  }

  @Override
  public int count() {
    return examples.size();
  }

  @Override
  public TensorActivations some(int count) {
    return new TensorActivations(ActivationSource.spread(examples, count), threads);
  }

  @Override
  public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
    run(
        model,
        activations,
        receiver,
        threads,
        fed -> {
          for (Map<String, OnnxTensor> inputs : examples) {
            fed.run(inputs);
          }
        });
  }

  @Override
  public Held hold(
      OnnxModel model, Collection<String> activations, Receiver receiver, Set<String> held) {
    return HeldTensors.behind(
        model,
        activations,
        receiver,
        held,
        threads,
        run -> {
          for (Map<String, OnnxTensor> inputs : examples) {
            run.run(copies(inputs));
          }
        });
  }

  private static Map<String, OnnxTensor> copies(Map<String, OnnxTensor> tensors)
      throws OrtException {
    Map<String, OnnxTensor> copies = new HashMap<>();
    for (Map.Entry<String, OnnxTensor> e : tensors.entrySet()) {
      OnnxTensor tensor = e.getValue();
      copies.put(
          e.getKey(),
          OnnxTensor.createTensor(
              OnnxRuntime.environment(),
              tensor.getByteBuffer(),
              tensor.getInfo().getShape(),
              tensor.getInfo().type));
    }
    return copies;
  }

  /** Runs a model on the inputs of one example. */
  @FunctionalInterface
  interface Run {
    void run(Map<String, OnnxTensor> inputs) throws OrtException;
  }

  /** Has a model run on each example. */
  @FunctionalInterface
  interface Feeder {
    void feed(Run model) throws OrtException;
  }

  /** Runs a model on what a feeder has of examples. */
  static void run(
      OnnxModel model,
      Collection<String> activations,
      Receiver receiver,
      int threads,
      Feeder examples) {
    Set<String> fetched = new HashSet<>(activations);
    try (LoadedModel loaded = LoadedModel.of(model.withOutputs(activations), threads)) {
      examples.feed(
          inputs -> {
            // A graph input is no output that could be fetched: its values are what is fed.
            for (Map.Entry<String, OnnxTensor> e : inputs.entrySet()) {
              if (fetched.contains(e.getKey())) {
                receive(model, e.getKey(), e.getValue(), receiver);
              }
            }
            Set<String> computed = new HashSet<>(fetched);
            computed.removeAll(inputs.keySet());
            if (computed.isEmpty()) {
              return;
            }
            Map<String, OnnxTensor> read = new HashMap<>(inputs);
            read.keySet().retainAll(loaded.session().getInputNames());
            try (OrtSession.Result result = loaded.session().run(read, computed)) {
              for (Map.Entry<String, OnnxValue> e : result) {
                receive(model, e.getKey(), e.getValue(), receiver);
              }
            }
          });
    } catch (OrtException e) {
      throw new InputException(
          model.name() + ": ONNX Runtime cannot run it for calibration: " + e.getMessage(), e);
    }
  }

  static void receive(OnnxModel model, String activation, OnnxValue value, Receiver receiver) {
    FloatBuffer values = OnnxRuntime.floats(value);
    if (values == null) {
      throw new InputException(model.name() + ": the activation " + activation + " is not float32");
    }
    receiver.accept(activation, ((OnnxTensor) value).getInfo().getShape(), values);
  }
}
