package org.espalier.online.model;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Supplier;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.online.Predictor;
import org.espalier.online.Weight;
import org.espalier.torch.Parameter;
import org.espalier.torch.TensorView;
import org.espalier.torch.TrainableModel;

/**
 * Copies of a libtorch model's weights that answer. Models are not safe for several threads, so each thread that predicts
 * borrows a replica, whose parameters are made to look at the memory of the version that it is to answer for. There are
 * as many replicas as threads that ever predicted at once.
 *
 * <p>A copy is brought up to date by the rows of tables that have changed since it was made, where that is known, and by
 * all of the other weights.
 */
final class TorchCopies implements AutoCloseable {
  private final Supplier<? extends TrainableModel> replicas;
  private final ExampleTensors examples;
  private final Queue<Replica> idle = new ConcurrentLinkedQueue<>();

  /** All that were made to answer, by identity. */
  private final Set<TrainableModel> answering = ConcurrentHashMap.newKeySet();

  private final AtomicLong serials = new AtomicLong();
  private volatile boolean closed;

  /** A model of one thread at a time, and the serial number of the weights in it. */
  private static final class Replica {
    final TrainableModel model;
    final List<Parameter> parameters;
    long serial;

    Replica(TrainableModel model) {
      this.model = model;
      this.parameters = model.parameters();
    }
  }

  /**
   * @param replicas makes the same model again, with any weights
   */
  TorchCopies(Supplier<? extends TrainableModel> replicas, ExampleTensors examples) {
    this.replicas = replicas;
    this.examples = examples;
  }

  /**
   * A new place for a version.
   *
   * @param weights of the model
   * @param logs by table what has changed in it; of a weight that has none all may have
   */
  Predictor predictor(List<Weight> weights, Map<String, RowLog> logs) {
    return new Copy(weights, logs);
  }

  /** The same model again, with any weights. */
  TrainableModel replica() {
    return replicas.get();
  }

  /**
   * One more for a thread that predicts. That none can be made (a full temporary folder, say) is no fault of what is to
   * be predicted.
   *
   * @throws IllegalStateException where what was made is no model of its own with these weights: its parameters would be
   *     made to look at other memory while somebody computes with them
   */
  private TrainableModel evaluated(List<Weight> weights) {
    try {
      TrainableModel made = replicas.get();
      String problem = problem(made, weights);
      if (problem != null) {
        throw new IllegalStateException(
            "the replicas of the model that learns are "
                + problem
                + "; its supplier must make a new model of the same form with each call");
      }
      made.train(false);
      return made;
    } catch (InputException e) {
      throw new IllegalStateException(
          "the model cannot be copied for one more thread that predicts: " + e.getMessage(), e);
    }
  }

  private String problem(TrainableModel made, List<Weight> weights) {
    if (made == null) {
      return "null";
    }
    List<Parameter> own = made.parameters();
    if (own.size() != weights.size()) {
      return "models of " + own.size() + " parameters, it has " + weights.size();
    }
    for (int k = 0; k < own.size(); k++) {
      org.espalier.device.Tensor memory = TensorView.of(own.get(k).tensor());
      org.espalier.device.Tensor wanted = weights.get(k).working();
      if (!Arrays.equals(memory.shape(), wanted.shape())) {
        return "models whose "
            + own.get(k).name()
            + " is "
            + memory
            + ", its "
            + weights.get(k).name()
            + " is "
            + wanted;
      }
      if (memory.elements() > 0 && memory.address() == wanted.address()) {
        return "the model itself, or share its parameters";
      }
    }
    return answering.add(made) ? null : "one model";
  }

  @Override
  public void close() {
    closed = true;
    closeIdle();
  }

  private void closeIdle() {
    for (Replica replica; (replica = idle.poll()) != null; ) {
      replica.model.close();
    }
  }

  /** A version's weights in native memory. */
  private final class Copy implements Predictor {
    private final List<Weight> weights;
    private final Map<String, RowLog> logs;
    private final List<OwnedTensor> memory = new ArrayList<>();
    private final List<Tensor> views = new ArrayList<>();

    /** By weight, the time of its log up to which this has its rows. */
    private final long[] times;

    private long serial;

    Copy(List<Weight> weights, Map<String, RowLog> logs) {
      this.weights = weights;
      this.logs = logs;
      times = new long[weights.size()];
      Arrays.fill(times, -1);
      try (PointerScope scope = new PointerScope()) {
        for (Weight w : weights) {
          OwnedTensor tensor = OwnedTensor.allocate(DType.F32, w.working().shape());
          memory.add(tensor);
          Tensor view = TorchLearnable.view(tensor);
          view.retainReference();
          views.add(view);
        }
      }
    }

    @Override
    public void load(List<Weight> loaded) {
      for (int k = 0; k < memory.size(); k++) {
        load(k, loaded.get(k).working());
      }
      serial = serials.incrementAndGet();
    }

    private void load(int k, org.espalier.device.Tensor from) {
      Weight weight = weights.get(k);
      RowLog log = logs.get(weight.name());
      // A log is of the model's own weights.
      boolean isLogged = log != null && from == weight.working();
      List<long[]> changes = isLogged ? log.since(times[k]) : null;
      if (changes == null) {
        TorchLearnable.copy(from, memory.get(k));
      } else {
        RowLog.copy(changes, from, memory.get(k));
      }
      times[k] = isLogged ? log.now() : -1;
    }

    @Override
    public void predict(float[][] rows, int count, float[] out) {
      if (closed) {
        throw new IllegalStateException("the model is closed");
      }
      if (count == 0) {
        return; // an empty tensor has no memory to be filled
      }
      Replica replica = idle.poll();
      if (replica == null) {
        replica = new Replica(evaluated(weights));
      }
      try (PointerScope scope = new PointerScope();
          NoGradGuard guard = new NoGradGuard()) {
        if (replica.serial != serial) {
          // Nothing is copied. The memory may be another version's when the replica comes back, but
          // then its number is another one too.
          for (int k = 0; k < views.size(); k++) {
            replica.parameters.get(k).tensor().set_data(views.get(k));
          }
          replica.serial = serial;
        }
        Tensor answers = examples.run(replica.model, examples.tensors(rows, 0, count), count);
        ExampleTensors.read(answers, out, count * examples.outputs());
      } finally {
        idle.add(replica);
        if (closed) { // meanwhile: whoever closed it did not see this replica
          closeIdle();
        }
      }
    }

    @Override
    public void close() {
      views.forEach(Tensor::close);
      memory.forEach(OwnedTensor::close);
    }
  }
}
