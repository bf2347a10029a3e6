package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.OnnxModel;

/** Runs a model on examples, each alone. */
public final class ExampleActivations implements ActivationSource {
  private final ExampleTensors examples;
  private final int threads;

  /**
   * A source of activations.
   *
   * @param threads threads of one run, at least 1
   */
  public ExampleActivations(ExampleTensors examples, int threads) {
    this.examples = examples;
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
  public ExampleActivations some(int count) {
    return new ExampleActivations(examples.some(count), threads);
  }

  private static Map<String, OnnxJavaType> inputs(OnnxModel model) {
    Map<String, OnnxJavaType> inputs = new LinkedHashMap<>();
    for (ValueInfoProto input : model.inputs()) {
      inputs.put(input.getName(), OnnxRuntime.type(input));
    }
    return inputs;
  }

  @Override
  public Held hold(
      OnnxModel model, Collection<String> activations, Receiver receiver, Set<String> held) {
    Map<String, OnnxJavaType> inputs = inputs(model);
    return HeldTensors.behind(
        model,
        activations,
        receiver,
        held,
        threads,
        run -> {
          for (int i = 0; i < examples.size(); i++) {
            run.run(examples.open(i, inputs));
          }
        });
  }

  @Override
  public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
    Map<String, OnnxJavaType> inputs = inputs(model);
    TensorActivations.run(
        model,
        activations,
        receiver,
        threads,
        fed -> {
          for (int i = 0; i < examples.size(); i++) {
            Map<String, OnnxTensor> tensors = examples.open(i, inputs);
            try {
              fed.run(tensors);
            } finally {
              ExampleTensors.close(tensors);
            }
          }
        });
  }
}
