package org.espalier.compress.onnx;

import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import org.espalier.compress.Progress;
import org.espalier.format.onnx.OnnxModel;

/**
 * Quantization of an ONNX model, with training between its plan and its export where that is wanted: the values that training
 * computed with are the values that are written.
 */
public sealed interface TrainableQuantizer permits OnnxQuantizer, WeightQuantizer {
  /** What the name of a weight ends in once the model is prepared, before a number where it needs one. */
  String LATENT = "_latent";

  /** The weights that are quantized, by the names of {@link org.espalier.format.onnx.OnnxWeight}. */
  List<String> quantized();

  /** The weights that were asked for and stay as they are, with the reason. */
  Map<String, String> skipped();

  /** Reports the progress of calibration to {@code listener}. */
  void tell(Progress listener);

  /**
   * Gives the float32 model the form that training changes and {@link #quantizedCopy} exports: biases take
   * up the error of calibration, every product gets an initializer of its own in the layout that its node
   * sees, and embedding tables become the values that their integers stand for. After training put the
   * trained constants into the model, and the integers back with {@link #setWeights} and {@link #setTable}.
   *
   * @throws org.espalier.InputException if weights are not finite, naming them
   */
  void prepareTraining();

  /**
   * The products of a model that {@link #prepareTraining} has prepared, in graph order.
   *
   * @throws org.espalier.InputException if weights are not finite, naming them
   */
  List<QuantizedProduct> products();

  /**
   * The embedding tables of such a model that are quantized, each once.
   *
   * @throws org.espalier.InputException if weights are not finite, naming them
   */
  List<QuantizedTable> tables();

  /**
   * Sets what {@link #quantizedCopy} writes for a product.
   *
   * @param output as in {@link QuantizedProduct#output}
   * @param integers on its grid, in the layout of {@link QuantizedProduct#weight}
   * @param scales as its grid has them
   */
  void setWeights(String output, byte[] integers, float[] scales);

  /**
   * Sets what {@link #quantizedCopy} writes for a table, which otherwise is quantized as it is then.
   *
   * @param table as in {@link QuantizedTable#table}
   * @param integers on its grid, row by row
   * @param scales as its grid has them
   */
  void setTable(String table, byte[] integers, float[] scales);

  /**
   * A quantized copy of the model, which itself stays float32.
   *
   * @param change replaces constants of the copy before it is quantized, such as trained biases
   */
  OnnxModel quantizedCopy(Consumer<OnnxModel> change);
}
