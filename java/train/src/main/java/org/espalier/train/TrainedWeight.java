package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.Parameter;
import org.espalier.torch.TensorView;

/**
 * A parameter with what training keeps beside it. Float parameters are trained in place. A quantized one
 * has latent weights and scales of its own, and what forward reads is on the grid:
 *
 * <pre>  working = scale · clamp(rint(latent · (1/scale)), −qmax, qmax)</pre>
 */
final class TrainedWeight implements AutoCloseable {
  private static final int PIECE = 1 << 16;

  /** Its scale has a reciprocal. */
  private static final float SMALLEST_END = 0x1p-100f;

  final Parameter parameter;
  final Tensor working;
  final long elements;

  /** One bit a weight, 1 = kept; null where nothing was pruned. */
  private OwnedTensor mask;

  /** Null where the parameter is float: its working weights are the latent ones. */
  private OwnedTensor latent;

  private OwnedTensor scales;

  /** Where scales are learned: qmax · scale, the largest weight of each channel; else null. */
  private OwnedTensor ends;

  private OwnedTensor endGradients;
  private OwnedTensor gate;
  private int channelAxis = -1;
  private int qmax;

  TrainedWeight(Parameter parameter) {
    this.parameter = parameter;
    this.working = TensorView.of(parameter.tensor());
    this.elements = working.elements();
  }

  String name() {
    return parameter.name();
  }

  boolean isQuantized() {
    return latent != null;
  }

  /** What the optimizer updates. */
  Tensor latent() {
    return latent == null ? working : latent;
  }

  Tensor scales() {
    return scales;
  }

  int channelAxis() {
    return channelAxis;
  }

  int qmax() {
    return qmax;
  }

  /**
   * Puts the weight on a grid. Each latent weight starts at the middle of its integer's step: there the
   * work of compensated rounding is kept until the gradient has moved a weight by half a step.
   *
   * @param axis along which the scales lie; −1 for one scale
   * @param largest the integers are in [−largest, largest]
   */
  void quantize(int axis, int largest, byte[] integers, float[] scale) {
    quantize(axis, largest, integers, scale, false);
  }

  /**
   * Puts the weight on a grid whose scales may be learned.
   *
   * @param learn whether {@link #ends} are parameters
   */
  void quantize(int axis, int largest, byte[] integers, float[] scale, boolean learn) {
    channelAxis = axis;
    qmax = largest;
    latent = OwnedTensor.allocate(DType.F32, working.shape());
    scales = OwnedTensor.allocate(DType.F32, scale.length);
    gate = bits();
    floats(scales).put(scale);
    if (learn) {
      ends = OwnedTensor.allocate(DType.F32, scale.length);
      endGradients = OwnedTensor.allocate(DType.F32, scale.length);
      FloatBuffer end = buffer(ends);
      for (int c = 0; c < scale.length; c++) {
        end.put(c, qmax * scale[c]);
      }
      takeEnds();
    }
    FloatBuffer steps = buffer(scales);
    FloatBuffer to = buffer(latent);
    long inner = axis < 0 ? elements : 1;
    for (int a = axis + 1; axis >= 0 && a < working.rank(); a++) {
      inner *= working.dimension(a);
    }
    for (int i = 0; i < elements; i++) {
      to.put(i, integers[i] * steps.get((int) (i / inner % scale.length)));
    }
    renew();
  }

  /** The end of each channel's grid, qmax · scale, where scales are learned; else null. */
  Tensor ends() {
    return ends;
  }

  /** What {@link #learnEnds} writes. */
  Tensor endGradients() {
    return endGradients;
  }

  /**
   * Writes the gradients of the ends, from the gradient of the working weights. A step of SGD then moves the
   * scales as Esser et al. (Learned Step Size Quantization, 2020) have it, their factor included: a change of
   * an end is qmax times one of the scale, and so is its gradient here.
   */
  void learnEnds(Tensor gradient) {
    FakeQuantize grid = grid();
    grid.scaleGradient(
        latent,
        gradient,
        null,
        floats(scales),
        null,
        floats(endGradients),
        null,
        qmax * grid.scaleGradientFactor(latent));
  }

  /** Takes the scales from the ends, of which a step takes half at most, and renews what forward reads. */
  void followEnds() {
    rescale(0.5f);
    renew();
  }

  /** Takes the scales from ends that were set. */
  void takeEnds() {
    rescale(0);
  }

  private void rescale(float least) {
    FloatBuffer end = buffer(ends);
    FloatBuffer scale = buffer(scales);
    for (int c = 0; c < ends.elements(); c++) {
      end.put(c, Math.max(Math.max(end.get(c), least * qmax * scale.get(c)), SMALLEST_END));
      scale.put(c, end.get(c) / qmax);
    }
  }

  /** Gives the weight a mask that keeps everything, if it has none yet. */
  void makeMask() {
    if (mask == null) {
      mask = bits();
      Pointer.memset(mask.pointer(), 255, mask.bytes());
    }
  }

  /** Room for one bit an element. */
  private OwnedTensor bits() {
    return OwnedTensor.allocate(DType.F32, (elements + 31) / 32);
  }

  /** How many working weights are exactly 0. */
  long zeros() {
    FloatBuffer values = buffer(working);
    long zeros = 0;
    for (int i = 0; i < elements; i++) {
      zeros += values.get(i) == 0 ? 1 : 0;
    }
    return zeros;
  }

  /** Writes working weights and gate of the latent ones as they are. */
  void renew() {
    if (latent != null) {
      grid().run(FakeQuantize.Job.fake(latent, working, gateBits(), floats(scales), null));
    }
  }

  /** The integers of the working weights. */
  byte[] integers() {
    byte[] result = new byte[Math.toIntExact(elements)];
    try (BytePointer integers = new BytePointer(elements)) {
      grid().run(FakeQuantize.Job.real(latent, integers, floats(scales), null));
      integers.get(result);
    }
    return result;
  }

  private FakeQuantize grid() {
    FakeQuantize grid = FakeQuantize.symmetric(-qmax, qmax, qmax).given();
    return channelAxis < 0 ? grid : grid.perChannel(channelAxis);
  }

  BytePointer gateBits() {
    return gate == null ? null : new BytePointer(gate.pointer());
  }

  /** The mask's memory, or null. */
  Tensor mask() {
    return mask;
  }

  BytePointer maskBits() {
    return mask == null ? null : new BytePointer(mask.pointer());
  }

  static FloatPointer floats(Tensor tensor) {
    return new FloatPointer(tensor.pointer());
  }

  static FloatBuffer buffer(Tensor tensor) {
    return floats(tensor).capacity(tensor.elements()).asBuffer();
  }

  /** Writes the bytes of a tensor. */
  static void write(Tensor tensor, DataOutputStream out) throws IOException {
    ByteBuffer from = bytes(tensor);
    byte[] piece = new byte[PIECE];
    while (from.hasRemaining()) {
      int n = Math.min(PIECE, from.remaining());
      from.get(piece, 0, n);
      out.write(piece, 0, n);
    }
  }

  /** Reads the bytes of a tensor. */
  static void read(Tensor tensor, DataInputStream in) throws IOException {
    ByteBuffer to = bytes(tensor);
    byte[] piece = new byte[PIECE];
    while (to.hasRemaining()) {
      int n = Math.min(PIECE, to.remaining());
      in.readFully(piece, 0, n);
      to.put(piece, 0, n);
    }
  }

  private static ByteBuffer bytes(Tensor tensor) {
    return new BytePointer(tensor.pointer()).capacity(tensor.bytes()).asByteBuffer();
  }

  static void copy(Tensor from, Tensor to) {
    Pointer.memcpy(to.pointer(), from.pointer(), from.bytes());
  }

  @Override
  public void close() {
    for (OwnedTensor t : new OwnedTensor[] {mask, latent, scales, gate, ends, endGradients}) {
      if (t != null) {
        t.close();
      }
    }
  }
}
