package org.espalier.train;

import java.util.Objects;
import java.util.function.Predicate;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.compress.onnx.TrainableQuantizer;
import org.espalier.compress.onnx.WeightIntegers;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;

/**
 * How weights and activations are quantized, in training and in the exported model alike.
 *
 * @param form where the ranges of activations come from
 * @param weights how weights are rounded
 * @param ranges how {@code STATIC} ranges of activations are found
 * @param fit whether calibration examples equalize activations and round weights with compensation
 *     before training starts
 * @param include which weights, by name
 */
public record Quantization(
    Form form, Weights weights, Ranges ranges, boolean fit, Predicate<String> include) {
  /** Where the ranges of activations come from. */
  public enum Form {
    /** Each example's own at run time (DynamicQuantizeLinear). */
    DYNAMIC,
    /** Fixed (QuantizeLinear and DequantizeLinear). */
    STATIC,
    /** Activations stay float32, and weights have 4 bits (MatMulNBits). */
    INT4;

    /** What weights become: int8 or int4. */
    public String weights() {
      return this == INT4 ? "int4" : "int8";
    }
  }

  /**
   * How weights are rounded.
   *
   * @param integers which 8 bits; of {@code INT4} INT8, which says nothing
   * @param block of {@code INT4}: how many input channels share a scale, as {@link
   *     org.espalier.compress.onnx.BlockQuantizer.Options} has it
   * @param size of {@code INT4}: the share of the model's bytes that the result may take, in (0, 1): the weights whose 4
   *     bits change outputs most have 8, as many as fit; 0 where all have 4
   * @param embeddings whether embedding tables are quantized
   * @param learnScales whether scales are parameters rather than constants: beside the weights (LSQ) or, of {@code INT4},
   *     in their place, while integers stay as they are
   */
  public record Weights(
      WeightIntegers integers, int block, double size, boolean embeddings, boolean learnScales) {
    public Weights {
      if (!(size >= 0 && size < 1)) {
        throw new IllegalArgumentException("size " + size + "; it is in [0, 1)");
      }
    }

    /** The same with blocks of another length. */
    public Weights withBlock(int other) {
      return new Weights(integers, other, size, embeddings, learnScales);
    }

    /** The same with scales that are parameters, or constants. */
    public Weights withLearnedScales(boolean learned) {
      return new Weights(integers, block, size, embeddings, learned);
    }

    /** The same with other integers. */
    public Weights withIntegers(WeightIntegers other) {
      return new Weights(other, block, size, embeddings, learnScales);
    }

    /** The same with another size. */
    public Weights withSize(double share) {
      return new Weights(integers, block, share, embeddings, learnScales);
    }
  }

  /**
   * How fixed ranges of activations are found, and whether they change in training.
   *
   * @param clipping how they follow from the calibration examples; null: as costs the model's answers least on some of
   *     them where they are tensors and {@link Quantization#fit} is true, by least squared error else
   * @param momentum how far one step moves a range towards the batch's, in [0, 1]; 0 keeps what calibration found
   * @param freezeAt the share of the stage's steps after which they stay as they are, in [0, 1]
   * @param learned whether they are parameters (LSQ) once they no longer follow the batches
   */
  public record Ranges(Clipping clipping, double momentum, double freezeAt, boolean learned) {
    public Ranges {
      share("momentum", momentum);
      share("freeze at", freezeAt);
    }

    /** Ranges that stay as calibration found them. */
    public static Ranges still(Clipping clipping) {
      return new Ranges(clipping, 0, 0, false);
    }

    private static void share(String name, double value) {
      if (!(value >= 0 && value <= 1)) {
        throw new IllegalArgumentException(name + " " + value + "; it is in [0, 1]");
      }
    }
  }

  public Quantization {
    Objects.requireNonNull(form, "form");
    Objects.requireNonNull(weights, "weights");
    Objects.requireNonNull(ranges, "ranges");
    Objects.requireNonNull(include, "include");
    if (ranges.learned() && form != Form.STATIC) {
      throw new IllegalArgumentException("only fixed ranges can be learned");
    }
    if (weights.integers() != WeightIntegers.INT8 && form == Form.INT4) {
      throw new IllegalArgumentException("weights of 4 bits are no " + weights.integers());
    }
    if (weights.size() > 0 && (form != Form.INT4 || !fit)) {
      throw new IllegalArgumentException("a size is for weights of 4 bits that are fitted");
    }
  }

  /** Dynamic activations, 8 bits, embeddings too, fitted. */
  public static Quantization dynamic() {
    return of(Form.DYNAMIC);
  }

  /** Fixed ranges of least squared error, 8 bits, embeddings too, fitted; ranges do not move. */
  public static Quantization fixed() {
    return of(Form.STATIC);
  }

  /** Weights of 4 bits in blocks of 32, embeddings too, fitted; their scales are trained. */
  public static Quantization int4() {
    return of(Form.INT4);
  }

  /** What {@link #dynamic}, {@link #fixed} or {@link #int4} gives. */
  public static Quantization of(Form form) {
    return new Quantization(
        form,
        new Weights(
            WeightIntegers.INT8, BlockQuantizer.Options.block(4), 0, true, form == Form.INT4),
        Ranges.still(new Clipping.MeanSquaredError()),
        true,
        name -> true);
  }

  /**
   * Plans the quantization of a model and gives it the form that it needs.
   *
   * @throws org.espalier.InputException where it cannot be quantized
   */
  TrainableQuantizer quantizer(OnnxModel model) {
    // A model that was prepared before has names of its own for the weights.
    Predicate<OnnxWeight> included =
        w -> include.test(w.name().replaceFirst(TrainableQuantizer.LATENT + "(_\\d+)?$", ""));
    WeightIntegers integers = weights.integers();
    boolean embeddings = weights.embeddings();
    return switch (form) {
      case DYNAMIC ->
          new DynamicQuantizer(model, new DynamicQuantizer.Options(integers, embeddings, included));
      case STATIC ->
          new StaticQuantizer(model, new StaticQuantizer.Options(integers, embeddings, included));
      case INT4 ->
          new BlockQuantizer(
              model, new BlockQuantizer.Options(4, weights.block(), embeddings, included));
    };
  }

  /** The bytes that the quantized model may take where {@link Weights#size} is not 0. */
  long most(OnnxModel given) {
    return (long) (weights.size() * given.inlineSize());
  }

  /** The same with other settings of weights. */
  public Quantization with(Weights other) {
    return new Quantization(form, other, ranges, fit, include);
  }

  /** The same with other ranges. */
  public Quantization with(Ranges other) {
    return new Quantization(form, weights, other, fit, include);
  }

  /** The same, fitted to calibration examples or not. */
  public Quantization withFit(boolean fitted) {
    return new Quantization(form, weights, ranges, fitted, include);
  }

  /** The same with scales of weights that are parameters, or constants. */
  public Quantization withLearnedScales(boolean learned) {
    return with(weights.withLearnedScales(learned));
  }
}
