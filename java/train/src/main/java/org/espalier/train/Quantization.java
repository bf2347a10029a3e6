package org.espalier.train;

import java.util.Objects;
import java.util.function.Predicate;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.Clipping;

/**
 * How weights and activations are quantized, in training and in the exported model alike.
 *
 * @param form where the ranges of activations come from
 * @param reduceRange weights of 7 bits, for processors whose 8-bit products saturate; not of {@code INT4}
 * @param block of {@code INT4}: how many input channels share a scale, as {@link
 *     org.espalier.compress.onnx.BlockQuantizer.Options} has it
 * @param embeddings whether embedding tables are quantized
 * @param fit whether calibration examples equalize activations and round weights with compensation
 *     before training starts
 * @param clipping how {@code STATIC} ranges follow from the calibration examples; null: as costs the model's answers
 *     least on some of them where they are tensors and {@code fit} is true, by least squared error else
 * @param observerMomentum how far one step moves a {@code STATIC} range towards the batch's, in [0, 1];
 *     0 keeps what calibration found
 * @param freezeObserversAt the share of the stage's steps after which {@code STATIC} ranges stay as
 *     they are, in [0, 1]
 * @param learnScales whether scales of weights are parameters rather than constants: beside the weights (LSQ) or, of {@code
 *     INT4}, in their place, while integers stay as they are
 * @param learnRanges whether {@code STATIC} ranges are parameters (LSQ) once they no longer follow the
 *     batches
 * @param include which weights, by name
 */
public record Quantization(
    Form form,
    boolean reduceRange,
    int block,
    boolean embeddings,
    boolean fit,
    Clipping clipping,
    double observerMomentum,
    double freezeObserversAt,
    boolean learnScales,
    boolean learnRanges,
    Predicate<String> include) {
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

  public Quantization {
    Objects.requireNonNull(form, "form");
    Objects.requireNonNull(include, "include");
    share("observer momentum", observerMomentum);
    share("freeze observers at", freezeObserversAt);
    if (learnRanges && form != Form.STATIC) {
      throw new IllegalArgumentException("only fixed ranges can be learned");
    }
    if (reduceRange && form == Form.INT4) {
      throw new IllegalArgumentException("weights of 4 bits cannot have 7");
    }
  }

  private static void share(String name, double value) {
    if (!(value >= 0 && value <= 1)) {
      throw new IllegalArgumentException(name + " " + value + "; it is in [0, 1]");
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

  private static Quantization of(Form form) {
    return new Quantization(
        form,
        false,
        BlockQuantizer.Options.block(4),
        true,
        true,
        new Clipping.MeanSquaredError(),
        0,
        0.5,
        form == Form.INT4,
        false,
        name -> true);
  }
}
