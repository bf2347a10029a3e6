package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.OnnxModel;

/** Examples on their way through models that follow one another: each holds what later ones read. */
final class HeldTensors implements ActivationSource.Held {
  private final List<Map<String, OnnxTensor>> examples = new ArrayList<>();
  private final int threads;

  /**
   * @param threads threads of one run, at least 1
   */
  HeldTensors(int threads) {
    this.threads = threads;
  }

  /** A model that gives what is to be received and what is to be held. */
  static OnnxModel giving(OnnxModel model, Collection<String> activations, Set<String> held) {
    Set<String> values = new TreeSet<>(activations);
    values.addAll(held);
    return model.giving(values);
  }

  /** Has a model run on one example after the other. */
  @FunctionalInterface
  interface Examples {
    /**
     * @param run runs one example, whose tensors it closes or holds
     */
    void each(TensorActivations.Run run) throws OrtException;
  }

  /**
   * Runs a model on examples.
   *
   * @param activations that the receiver is given
   * @param held values that the result has
   * @throws InputException where ONNX Runtime does not run it
   */
  static HeldTensors behind(
      OnnxModel model,
      Collection<String> activations,
      ActivationSource.Receiver receiver,
      Set<String> held,
      int threads,
      Examples examples) {
    try (LoadedModel loaded = LoadedModel.of(giving(model, activations, held), threads)) {
      return behind(model, loaded.session(), activations, receiver, held, threads, examples);
    }
  }

  /**
   * The same in a session.
   *
   * @param session of what {@link #giving} makes of the model
   */
  static HeldTensors behind(
      OnnxModel model,
      OrtSession session,
      Collection<String> activations,
      ActivationSource.Receiver receiver,
      Set<String> held,
      int threads,
      Examples examples) {
    HeldTensors result = new HeldTensors(threads);
    try {
      examples.each(inputs -> result.add(model, session, inputs, activations, receiver, held));
      return result;
    } catch (OrtException e) {
      result.close();
      throw new InputException(
          model.name() + ": ONNX Runtime cannot run it for calibration: " + e.getMessage(), e);
    } catch (RuntimeException e) {
      result.close();
      throw e;
    }
  }

  /** Runs one example and adds what is held of it; the others of its tensors are closed. */
  private void add(
      OnnxModel model,
      OrtSession session,
      Map<String, OnnxTensor> example,
      Collection<String> activations,
      ActivationSource.Receiver receiver,
      Set<String> held)
      throws OrtException {
    Map<String, OnnxTensor> values = new HashMap<>(example);
    try {
      Map<String, OnnxTensor> inputs = new HashMap<>(example);
      inputs.keySet().retainAll(session.getInputNames());
      Set<String> computed = new HashSet<>(held);
      computed.addAll(activations);
      computed.removeAll(example.keySet());
      if (!computed.isEmpty()) {
        for (Map.Entry<String, OnnxValue> e : session.run(inputs, computed)) {
          values.put(e.getKey(), (OnnxTensor) e.getValue());
        }
      }
      for (String activation : new TreeSet<>(activations)) {
        TensorActivations.receive(model, activation, values.get(activation), receiver);
      }
      Map<String, OnnxTensor> kept = new HashMap<>(values);
      kept.keySet().retainAll(held);
      examples.add(kept);
      values.keySet().removeAll(held);
    } finally {
      values.values().forEach(OnnxTensor::close);
    }
  }

  @Override
  public int count() {
    return examples.size();
  }

  @Override
  public List<ValueInfoProto> values() {
    List<ValueInfoProto> values = new ArrayList<>();
    for (String name : new TreeSet<>(examples.get(0).keySet())) {
      TensorInfo info = examples.get(0).get(name).getInfo();
      long[] shape = info.getShape();
      ValueInfoProto.Builder value = ValueInfoProto.newBuilder().setName(name);
      TensorShapeProto.Builder dims =
          value
              .getTypeBuilder()
              .getTensorTypeBuilder()
              .setElemType(DataType.valueOf(info.type.name()).getNumber())
              .getShapeBuilder();
      for (int i = 0; i < shape.length; i++) {
        int axis = i;
        boolean fixed =
            examples.stream().allMatch(e -> e.get(name).getInfo().getShape()[axis] == shape[axis]);
        TensorShapeProto.Dimension.Builder dim = dims.addDimBuilder();
        if (fixed) {
          dim.setDimValue(shape[i]);
        }
      }
      values.add(value.build());
    }
    return values;
  }

  @Override
  public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
    new TensorActivations(examples, threads).run(model, activations, receiver);
  }

  @Override
  public HeldTensors hold(
      OnnxModel model, Collection<String> activations, Receiver receiver, Set<String> held) {
    try {
      return behind(
          model,
          activations,
          receiver,
          held,
          threads,
          run -> {
            while (!examples.isEmpty()) {
              run.run(examples.remove(0));
            }
          });
    } finally {
      close();
    }
  }

  @Override
  public void close() {
    examples.forEach(e -> e.values().forEach(OnnxTensor::close));
    examples.clear();
  }
}
