package org.espalier.train;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;

/** Checks that the examples of a job are what its models take: tensors by name, their types, and batches of any size. */
final class InputCheck {
  private final Compression.Job job;

  InputCheck(Compression.Job job) {
    this.job = job;
  }

  /**
   * Checks the inputs of the model and, where there is one, of the teacher.
   *
   * @throws InputException that names the model and the input
   */
  void run() {
    checkBatches();
    checkInputs();
  }

  /**
   * Refuses models for a fixed batch of several. One for a batch of 1 is opened for any size, and closed again when it
   * is written.
   */
  private void checkBatches() {
    for (OnnxModel model : models()) {
      List<String> names = model.inputs().stream().map(ValueInfoProto::getName).toList();
      for (ValueInfoProto value : model.inputs()) {
        TensorShapeProto shape = value.getType().getTensorType().getShape();
        int axes =
            job.training() instanceof Examples.Labelled rows
                ? input(rows, value.getName(), names, model).shape().size()
                : 1; // the tokens of a text
        boolean batched = shape.getDimCount() == axes + 1;
        if (batched && shape.getDim(0).getDimValue() > 1) {
          throw new InputException(
              model.name()
                  + ": the input "
                  + value.getName()
                  + " is of "
                  + shape.getDim(0).getDimValue()
                  + " examples at once; training and measuring take models of batches of any size,"
                  + " or of 1: export it as one of these");
        }
      }
    }
  }

  /** Checks types, and that each tensor of the examples is an input of a model: otherwise its name is wrong. */
  private void checkInputs() {
    if (!(job.training() instanceof Examples.Labelled rows)) {
      return;
    }
    Set<String> taken = new TreeSet<>();
    for (OnnxModel model : models()) {
      List<String> names = model.inputs().stream().map(ValueInfoProto::getName).toList();
      taken.addAll(names);
      for (ValueInfoProto input : model.inputs()) {
        DataType wanted = DataType.forNumber(input.getType().getTensorType().getElemType());
        SafetensorsDtype type = input(rows, input.getName(), names, model).type();
        if (Examples.Input.TYPES.get(type) != wanted) {
          throw new InputException(
              model.name()
                  + ": the input "
                  + input.getName()
                  + " is "
                  + wanted
                  + "; its tensor among the examples is "
                  + type);
        }
      }
    }
    for (Examples.Input input : rows.inputs()) {
      if (input.name() != null && !taken.contains(input.name())) {
        throw new InputException(
            "the tensor "
                + input.name()
                + " of the examples is no input of "
                + job.model().name()
                + ", which takes "
                + taken);
      }
    }
  }

  private static Examples.Input input(
      Examples.Labelled rows, String name, List<String> names, OnnxModel model) {
    try {
      return rows.input(name, names);
    } catch (InputException e) {
      throw new InputException(model.name() + ": " + e.getMessage(), e);
    }
  }

  private List<OnnxModel> models() {
    return job.teacher() == null ? List.of(job.model()) : List.of(job.model(), job.teacher());
  }
}
