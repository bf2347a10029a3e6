package org.espalier.op;

import java.lang.ref.Reference;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.Tensor;

/**
 * The functions between {@linkplain Linear layers}, element by element, in place.
 *
 * <pre>
 *   RELU        y = max(0, u)                    y' = y &gt; 0 ? 1 : 0
 *   LEAKY_RELU  y = u &lt; 0 ? alpha · u : u        y' = y &gt; 0 ? 1 : alpha
 *   SIGMOID     y = 1 / (1 + exp(−u))            y' = y · (1 − y)
 *   TANH        y = tanh(u)                      y' = 1 − y²
 * </pre>
 *
 * <p>SIGMOID and TANH are within 3 units in the last place, SIGMOID from −88 on: below, it stays what it is there, 6e-39. Results have the same bits on every instruction set and for
 * every number of threads.
 *
 * @param kind which function
 * @param alpha of LEAKY_RELU, finite and from 0 on; 0 for the others
 */
public record Activation(Kind kind, float alpha) {
  /** Which function; the order is that of {@code espalier/activation.h}. */
  public enum Kind {
    RELU(espalier.ESP_RELU),
    LEAKY_RELU(espalier.ESP_LEAKY_RELU),
    SIGMOID(espalier.ESP_SIGMOID),
    TANH(espalier.ESP_TANH);

    private final int code;

    Kind(int code) {
      this.code = code;
    }
  }

  public static final Activation RELU = new Activation(Kind.RELU, 0);
  public static final Activation SIGMOID = new Activation(Kind.SIGMOID, 0);
  public static final Activation TANH = new Activation(Kind.TANH, 0);

  public Activation {
    boolean isRight = kind == Kind.LEAKY_RELU ? alpha >= 0 && alpha <= Float.MAX_VALUE : alpha == 0;
    if (!isRight) {
      throw new IllegalArgumentException(
          "alpha "
              + alpha
              + " of "
              + kind
              + "; a finite number from 0 on for LEAKY_RELU, 0 for the others is right");
    }
  }

  /** What has a small slope below 0. */
  public static Activation leakyRelu(float alpha) {
    return new Activation(Kind.LEAKY_RELU, alpha);
  }

  /**
   * u becomes y.
   *
   * @param values F32; the first {@code n} elements are changed
   * @throws IllegalStateException where its memory was closed
   */
  public void forward(Tensor values, long n) {
    check("values", values, n);
    values.requireWritable("values");
    Status.check(espalier.esp_activation_forward(kind.code, alpha, floats(values), n));
    Reference.reachabilityFence(values);
  }

  /**
   * The gradient with respect to y becomes that with respect to u.
   *
   * @param y what forward has made, F32
   * @param slope F32; its first {@code n} elements are changed
   * @throws IllegalStateException where memory was closed
   */
  public void backward(Tensor y, Tensor slope, long n) {
    check("y", y, n);
    check("slope", slope, n);
    slope.requireWritable("slope");
    Status.check(espalier.esp_activation_backward(kind.code, alpha, floats(y), floats(slope), n));
    Reference.reachabilityFence(y);
    Reference.reachabilityFence(slope);
  }

  private static void check(String name, Tensor tensor, long n) {
    tensor.requireOpen();
    if (tensor.dtype() != DType.F32 || n < 0 || n > tensor.elements()) {
      throw new IllegalArgumentException(
          name + " " + tensor + ": F32 of at least " + n + " elements is needed");
    }
  }

  private static FloatPointer floats(Tensor tensor) {
    return new FloatPointer(tensor.pointer());
  }
}
