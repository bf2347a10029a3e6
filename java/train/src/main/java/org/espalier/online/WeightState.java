package org.espalier.online;

import java.io.DataInput;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.zip.CRC32C;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.online.privacy.Privacy;
import org.espalier.op.Channel;
import org.espalier.op.FusedAdamW;
import org.espalier.op.FusedSgd;
import org.espalier.op.FusedStep;
import org.espalier.op.GradientNorm;
import org.espalier.op.Scale;
import org.espalier.op.StepNoise;
import org.espalier.op.WorkingCopy;

/**
 * The weights of a model with their optimizer, mask, int8 grid and average: everything that a step
 * changes. Not for several threads.
 */
final class WeightState implements AutoCloseable {
  private final List<Weight> weights;
  private final List<Weight> learned = new ArrayList<>();
  private final List<Weight> served = new ArrayList<>();
  private final Opened opened = new Opened();
  private final StateMemory memory = opened.add(new StateMemory());
  private final List<FloatBuffer> averages = new ArrayList<>();
  private final List<FloatBuffer> workings = new ArrayList<>();
  private final List<FloatBuffer> latents = new ArrayList<>();

  /** Of those that are learned: where in the model's list they are, and where their gradients are now. */
  private final List<Integer> places = new ArrayList<>();

  private final List<Tensor> gradients = new ArrayList<>();

  /** Those that are learned by rows, by their place among the learned ones. */
  private final Map<Integer, TableRows> tables = new TreeMap<>();

  /** The scales of weights that always lie on the same grid. */
  private final Map<OwnedTensor, float[]> grids = new IdentityHashMap<>();

  private final GivenGrids givenGrids = opened.add(new GivenGrids());

  /** A step that changes nothing but working copies, scales and gates; null where weights have none. */
  private final FusedSgd still;

  /** The model, where it can learn tables by rows; else null. */
  private final RowLookUps lookUps;

  private final FusedStep optimizer;
  private final GradientNorm norm;
  private final double averaging;

  /** Takes steps on single examples by itself; null where the settings ask for more than that. */
  private final OuterProduct single;

  /** The optimizer's list, with which working copies and grids are made. */
  private final List<FusedSgd.Parameter> parameters = new ArrayList<>();

  /**
   * @param noiseKey of the noise of private learning; not used without
   */
  WeightState(Learnable model, OnlineSettings settings, long noiseKey) {
    Set<String> byRows = RowTables.begin(model, settings);
    RowTables.tell(model, settings, byRows);
    this.lookUps = model instanceof RowLookUps rows ? rows : null;
    this.weights = model.weights();
    boolean plain =
        settings.adamW() == null
            && settings.momentum() == 0
            && settings.weightDecay() == 0
            && settings.averaging() == 0
            && settings.only().isEmpty()
            && !settings.keepZeros()
            && !settings.int8()
            && settings.privacy() == null;
    this.single =
        plain && model instanceof OuterProduct product && product.descendsAlone() ? product : null;
    this.averaging = settings.averaging();
    for (String name : settings.only()) {
      if (weights.stream().noneMatch(w -> w.name().equals(name))) {
        throw new IllegalArgumentException(
            "the model has no weight '"
                + name
                + "'; it has "
                + weights.stream().map(Weight::name).toList());
      }
    }
    try {
      List<GradientNorm.Gradient> normed = learn(settings, byRows);
      if (parameters.isEmpty()) {
        throw new IllegalArgumentException("no weight is learned");
      }
      weights.forEach(this::serve);
      still = opened.add(still());
      givenGrids.find();
      findGrids();
      optimizer = opened.add(optimizer(settings));
      norm = opened.add(new GradientNorm(normed));
      Privacy privacy = settings.privacy();
      if (privacy != null) {
        // Divided by the settings' size: the true one would tell about the examples.
        optimizer.noise(
            new StepNoise(privacy.noise() * privacy.clip(), settings.batch(), noiseKey, 0));
      }
    } catch (RuntimeException | Error e) {
      opened.close();
      throw e;
    }
  }

  /**
   * Makes what is kept of all weights that are learned, and gives their gradients as the norm takes them.
   *
   * @param byRows the names of those that are learned by rows
   */
  private List<GradientNorm.Gradient> learn(OnlineSettings settings, Set<String> byRows) {
    List<GradientNorm.Gradient> normed = new ArrayList<>();
    for (int k = 0; k < weights.size(); k++) {
      Weight w = weights.get(k);
      if (settings.only().isEmpty() || settings.only().contains(w.name())) {
        places.add(k);
        normed.add(byRows.contains(w.name()) ? learnByRows(w, settings) : learn(w, settings));
      }
    }
    return normed;
  }

  /** Has readers get a weight, or the average of its working copies. */
  private void serve(Weight w) {
    if (averaging > 0 && learned.contains(w)) {
      OwnedTensor average = memory.own(w.latent().elements());
      averages.add(Floats.of(average));
      served.add(
          new Weight(w.name(), w.latent(), average, w.gradient(), w.isMatrix(), w.scaleAxis()));
    } else {
      served.add(w);
    }
  }

  /** Makes what is kept of a weight that is learned, and gives its gradient as the norm takes it. */
  private GradientNorm.Gradient learn(Weight w, OnlineSettings settings) {
    learned.add(w);
    long n = w.latent().elements();
    OwnedTensor momentum = settings.momentum() > 0 ? memory.own(n) : null;
    boolean masked = settings.keepZeros() && w.isMatrix();
    boolean given = w.grid() != null;
    boolean grid = given || settings.int8() && w.scaleAxis() >= 0;
    if (given && averaging > 0) {
      throw new IllegalArgumentException(
          "averaged weights are not on the int8 grid that " + w.name() + " lies on: no averaging");
    }
    // Where nothing rounds them, what the optimizer updates can be what forward reads.
    boolean same = w.latent() == w.working() && !grid;
    Tensor latent = w.latent() == w.working() && grid ? memory.own(w.latent().shape()) : w.latent();
    FloatBuffer latentMemory = Floats.of(latent);
    FloatBuffer workingMemory = Floats.of(w.working());
    latentMemory.put(0, Floats.of(w.latent()), 0, latentMemory.capacity());
    BytePointer mask = masked ? zerosOf(w) : null;
    BytePointer gate = grid ? memory.ownFollowingBits(n) : null;
    FusedSgd.Parameter parameter =
        FusedSgd.Parameter.of(latent, w.gradient(), momentum).withMask(mask);
    if (grid) {
      OwnedTensor scales = memory.ownFollowing(w.latent().dimension(w.scaleAxis()));
      if (given) {
        grids.put(scales, w.grid());
        Floats.of(scales).put(0, w.grid());
        givenGrids.add(w, latent, gate, scales);
      }
      parameter =
          parameter
              .withGate(gate)
              .withWorkingCopy(
                  WorkingCopy.of(w.working()),
                  new Scale(scales, Channel.ofAxis(w.scaleAxis(), w.latent().rank()), given));
    } else if (!same) {
      parameter = parameter.withWorkingCopy(WorkingCopy.of(w.working()));
    }
    parameters.add(parameter);
    gradients.add(w.gradient());
    latents.add(latentMemory);
    workings.add(workingMemory);
    if (latent == w.latent()) { // else it is among those of its own already
      memory.add(latentMemory);
    }
    if (!same) {
      memory.addFollowing(workingMemory);
    }
    return new GradientNorm.Gradient(w.gradient(), mask, gate);
  }

  /** The same for a table of which steps change the rows that were read: no product reads it, so it has no mask and no grid. */
  private GradientNorm.Gradient learnByRows(Weight w, OnlineSettings settings) {
    TableRows rows = opened.add(new TableRows(w, lookUps));
    if (settings.momentum() > 0) {
      rows.withMoment(memory.own(w.latent().elements()));
    }
    tables.put(learned.size(), rows);
    learned.add(w);
    parameters.add(rows.forSgd());
    gradients.add(rows.gradient());
    FloatBuffer values = Floats.of(w.latent());
    latents.add(values);
    workings.add(values);
    memory.add(values);
    return rows.forNorm();
  }

  private FusedSgd still() {
    List<FusedSgd.Parameter> rounded = new ArrayList<>();
    for (FusedSgd.Parameter p : parameters) {
      if (p.workingCopy() != null) {
        rounded.add(
            FusedSgd.Parameter.of(p.weight(), p.gradient(), null)
                .withGate(p.gate())
                .withWorkingCopy(p.workingCopy(), p.scale()));
      }
    }
    return new FusedSgd(rounded, FusedSgd.Options.of(0));
  }

  /** Has what follows from the latent weights do so. */
  private void follow() {
    for (int k = 0; k < parameters.size(); k++) {
      if (parameters.get(k).workingCopy() != null) {
        StateMemory.clear(Floats.of(parameters.get(k).gradient()));
      }
    }
    still.step();
    givenGrids.round();
  }

  /** The grid of the first forward. */
  private void findGrids() {
    follow();
    for (int i = 0; i < averages.size(); i++) {
      averages.get(i).put(0, workings.get(i), 0, averages.get(i).capacity());
    }
  }

  /**
   * Begins anew from other weights: optimizer, average, mask and grid are those of a state that is made
   * of a model with these weights.
   *
   * @param values in the order of {@link #weights}
   * @throws IllegalArgumentException where names or sizes are others; nothing was changed then
   */
  void begin(List<Weight> values) {
    settle();
    for (int k = 0; k < weights.size(); k++) {
      if (values.size() != weights.size()
          || !values.get(k).name().equals(weights.get(k).name())
          || !Arrays.equals(values.get(k).latent().shape(), weights.get(k).latent().shape())) {
        throw new IllegalArgumentException(
            "its weights are "
                + values.stream().map(w -> w.name() + " " + w.latent()).toList()
                + ", not "
                + weights.stream().map(w -> w.name() + " " + w.latent()).toList());
      }
    }
    memory.clearOwned();
    grids.forEach((scales, given) -> Floats.of(scales).put(0, given));
    for (int k = 0; k < weights.size(); k++) {
      FloatBuffer from = Floats.of(values.get(k).latent());
      Floats.of(weights.get(k).latent()).put(0, from, 0, from.capacity());
      Floats.of(weights.get(k).working()).put(0, from, 0, from.capacity());
    }
    for (int k = 0; k < learned.size(); k++) {
      FloatBuffer from = Floats.of(values.get(places.get(k)).latent());
      latents.get(k).put(0, from, 0, from.capacity());
      BytePointer mask = parameters.get(k).mask();
      BytePointer gate = parameters.get(k).gate();
      if (mask != null) {
        markKept(learned.get(k), mask);
      }
      if (gate != null) {
        BytePointer.memset(gate, 0xff, gate.capacity());
      }
    }
    givenGrids.find();
    findGrids();
    forgetMomentum();
    changedAll();
  }

  private FusedStep optimizer(OnlineSettings settings) {
    OnlineSettings.AdamW adamW = settings.adamW();
    if (adamW == null) {
      return new FusedSgd(
          parameters,
          FusedSgd.Options.of(1)
              .withMomentum(settings.momentum())
              .withWeightDecay(settings.weightDecay()));
    }
    List<FusedAdamW.Parameter> list = new ArrayList<>();
    for (int k = 0; k < parameters.size(); k++) {
      TableRows rows = tables.get(k);
      if (rows == null) {
        list.add(withMoments(parameters.get(k)));
      } else {
        long n = learned.get(k).latent().elements();
        rows.withMoment(memory.own(n));
        rows.withMoment(memory.own(n));
        list.add(rows.forAdamW());
      }
    }
    return new FusedAdamW(
        list,
        FusedAdamW.Options.of(1)
            .withBetas(adamW.beta1(), adamW.beta2())
            .withEpsilon(adamW.epsilon())
            .withWeightDecay(settings.weightDecay()));
  }

  /** How many steps momentum or moments know of; for momentum only whether there was one. */
  private long steps(int learnedIndex) {
    return optimizer instanceof FusedAdamW adam
        ? adam.steps(learnedIndex)
        : ((FusedSgd) optimizer).first(learnedIndex) ? 0 : 1;
  }

  private void steps(int learnedIndex, long number) {
    if (optimizer instanceof FusedAdamW adam) {
      adam.steps(learnedIndex, number);
    } else {
      ((FusedSgd) optimizer).first(learnedIndex, number == 0);
    }
  }

  private FusedAdamW.Parameter withMoments(FusedSgd.Parameter p) {
    long n = p.weight().elements();
    return FusedAdamW.Parameter.of(p, memory.own(n), memory.own(n));
  }

  private BytePointer zerosOf(Weight w) {
    BytePointer mask = memory.ownBits(w.latent().elements());
    markKept(w, mask);
    return mask;
  }

  /** A weight that is not 0 is kept. */
  private static void markKept(Weight w, BytePointer mask) {
    FloatBuffer values = Floats.of(w.latent());
    BytePointer.memset(mask, 0, mask.capacity());
    for (int i = 0; i < values.capacity(); i++) {
      if (values.get(i) != 0) {
        mask.put(i / 8, (byte) (mask.get(i / 8) | 1 << i % 8));
      }
    }
  }

  List<Weight> weights() {
    settle();
    return weights;
  }

  /** What no step changes, as text: the model's own, and a hash of the weights that are not learned. */
  String identity(Learnable model) {
    StringBuilder text = new StringBuilder();
    if (!model.identity().isEmpty()) {
      text.append("model: ").append(model.identity()).append('\n');
    }
    if (learned.size() < weights.size()) {
      CRC32C sum = new CRC32C();
      for (Weight w : weights) {
        if (!learned.contains(w)) {
          FloatBuffer values = Floats.of(w.latent());
          ByteBuffer bytes = ByteBuffer.allocate(4 * values.capacity());
          bytes.asFloatBuffer().put(values.duplicate());
          sum.update(bytes);
        }
      }
      text.append("frozen weights: ").append(Long.toHexString(sum.getValue())).append('\n');
    }
    return text.toString();
  }

  /** What readers get. */
  List<Weight> served() {
    settle();
    return served;
  }

  /**
   * Looks for the gradients where backward has left them.
   *
   * @param now the weights of the model
   */
  GradientNorm.Result gradientNorm(List<Weight> now) {
    tables.forEach(this::takeGradient);
    for (int k = 0; k < gradients.size(); k++) {
      if (tables.containsKey(k)) {
        continue;
      }
      Tensor gradient = now.get(places.get(k)).gradient();
      if (gradient != gradients.get(k)) {
        optimizer.gradient(k, gradient);
        norm.gradient(k, gradient);
        gradients.set(k, gradient);
      }
    }
    return norm.compute();
  }

  /** Has optimizer and norm see the rows of a table that this step is of. */
  private void takeGradient(int k, TableRows rows) {
    rows.takeGradient();
    gradients.set(k, rows.gradient());
    norm.gradient(k, rows.forNorm());
    if (optimizer instanceof FusedAdamW adam) {
      adam.parameter(k, rows.forAdamW());
    } else {
      ((FusedSgd) optimizer).parameter(k, rows.forSgd());
    }
  }

  void scaleGradients(double factor) {
    for (Tensor tensor : gradients) {
      FloatBuffer gradient = Floats.of(tensor);
      float[] values = new float[gradient.capacity()];
      gradient.get(0, values);
      for (int i = 0; i < values.length; i++) {
        values[i] *= (float) factor;
      }
      gradient.put(0, values);
    }
  }

  /** Takes steps on single examples without a gradient in memory; null where there must be one. */
  OuterProduct single() {
    return single;
  }

  /** Has the latent weights follow steps on single examples. */
  void settle() {
    if (single != null) {
      single.settle();
    }
  }

  void step(double learningRate) {
    settle();
    tables.values().forEach(TableRows::takeOut);
    optimizer.learningRate(learningRate);
    optimizer.step();
    givenGrids.round();
    tables.values().forEach(TableRows::putBack);
    for (int k = 0; k < averages.size(); k++) {
      float[] mean = new float[averages.get(k).capacity()];
      float[] now = new float[mean.length];
      averages.get(k).get(0, mean);
      workings.get(k).get(0, now);
      for (int i = 0; i < mean.length; i++) {
        mean[i] += (float) (1 - averaging) * (now[i] - mean[i]);
      }
      averages.get(k).put(0, mean);
    }
  }

  /** Momentum and moments begin anew with the next step. */
  void forgetMomentum() {
    for (int i = 0; i < learned.size(); i++) {
      steps(i, 0);
    }
    tables.values().forEach(TableRows::forgetMomentum);
  }

  /** What a step changes, as it is now. */
  StateMemory.Checkpoint checkpoint() {
    settle();
    long[] steps = new long[learned.size()];
    for (int i = 0; i < steps.length; i++) {
      steps[i] = steps(i);
    }
    return memory.copy(steps);
  }

  /** Makes a checkpoint what the weights are and began as. */
  void restoreBeginning(StateMemory.Checkpoint checkpoint) {
    memory.restore(checkpoint);
    givenGrids.find();
    restore(checkpoint);
  }

  void restore(StateMemory.Checkpoint checkpoint) {
    settle();
    memory.restore(checkpoint);
    follow();
    for (int i = 0; i < learned.size(); i++) {
      steps(i, checkpoint.steps()[i]);
    }
    changedAll();
  }

  /** Any row may be another now. */
  private void changedAll() {
    if (lookUps != null) {
      lookUps.changedAll();
    }
  }

  /** Reads a checkpoint of the shape that this state has. */
  StateMemory.Checkpoint read(DataInput in, int format) throws IOException {
    return memory.read(in, format, learned.size());
  }

  @Override
  public void close() {
    opened.close();
  }
}
