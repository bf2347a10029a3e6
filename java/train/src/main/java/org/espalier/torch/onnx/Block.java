package org.espalier.torch.onnx;

import java.util.List;
import org.bytedeco.pytorch.Tensor;

/** The steps of a graph inside a node: of a branch, of a loop's body. */
final class Block {
  private final Frame frame;
  private final List<Step> steps;
  private final int[] inputs;
  private final int[] outputs;

  /** Slots that the block sets itself and that nothing outside reads. */
  private final int[] own;

  Block(Frame frame, List<Step> steps, int[] inputs, int[] outputs, int[] own) {
    this.frame = frame;
    this.steps = steps;
    this.inputs = inputs;
    this.outputs = outputs;
    this.own = own;
  }

  int outputs() {
    return outputs.length;
  }

  /**
   * @param arguments a tensor for each input of the graph; the caller keeps them
   * @return a new object for each output
   */
  Tensor[] run(Tensor... arguments) {
    try {
      for (int i = 0; i < inputs.length; i++) {
        frame.set(inputs[i], arguments[i]);
      }
      steps.forEach(Step::run);
      Tensor[] results = new Tensor[outputs.length];
      for (int i = 0; i < results.length; i++) {
        results[i] = new Tensor(frame.get(outputs[i]));
      }
      return results;
    } finally {
      for (int slot : inputs) {
        frame.take(slot);
      }
      for (int slot : own) {
        frame.release(slot);
      }
    }
  }
}
