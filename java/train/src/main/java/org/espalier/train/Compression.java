package org.espalier.train;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.PastInput;

/**
 * A {@link CompressionPlan} at work on a model: prunes, quantizes and trains stage by stage, and
 * exports what training saw. Equal jobs give equal results, and a run that was saved, restored and
 * continued ends with the same bits as one that was not interrupted, on the same machine with the
 * same number of threads.
 *
 * <p>Not safe for several threads, but {@link #stop} may be called from any.
 */
public interface Compression extends AutoCloseable {
  /**
   * What a plan works on.
   *
   * @param model the model to compress; not changed
   * @param teacher gives what objectives compare with; null: the model as it is given or, behind a stage {@linkplain
   *     Stage.Train#teaches that teaches}, as that left it
   * @param training examples
   * @param validation other examples: the best state of a stage is found with them
   * @param pooling of embedding models; not used for classifiers
   * @param calibration runs examples for {@link Quantization#fit} and static ranges; null where no stage
   *     needs it
   * @param cache a folder for the teacher's outputs and for what stages that teach leave, once the size of the model
   *     each, kept between runs; null: they are computed in each run, and lie among the system's temporary files
   *     until it ends
   * @param augmentation of the training examples, where they are images
   */
  record Job(
      OnnxModel model,
      OnnxModel teacher,
      Examples training,
      Examples validation,
      Pooling pooling,
      ActivationSource calibration,
      Path cache,
      Augmentation augmentation) {
    public Job {
      Objects.requireNonNull(augmentation, "augmentation");
      if (training.getClass() != validation.getClass()
          || isCausal(training) != isCausal(validation)) {
        throw new InputException("training and validation examples are of different kinds");
      }
    }

    /** Training examples that are shown as they are. */
    public Job(
        OnnxModel model,
        OnnxModel teacher,
        Examples training,
        Examples validation,
        Pooling pooling,
        ActivationSource calibration,
        Path cache) {
      this(model, teacher, training, validation, pooling, calibration, cache, Augmentation.NONE);
    }

    /** The graph of a model that is trained here: for batches of any size, and for texts that begin. */
    OnnxModel opened(OnnxModel trainable) {
      OnnxModel open = ofFloats(trainable.withAnyBatch());
      return training instanceof Examples.Texts ? PastInput.without(open) : open;
    }

    /** Without what only says which class it is, as a word, say; all of it where that has weights of its own. */
    private static OnnxModel ofFloats(OnnxModel model) {
      OnnxModel floats = model.withFloatOutputs();
      return OnnxWeights.of(floats).size() == OnnxWeights.of(model).size() ? floats : model;
    }

    /** Whether a causal language model learns from texts. */
    boolean isCausal() {
      return isCausal(training);
    }

    private static boolean isCausal(Examples examples) {
      return examples instanceof Examples.Texts texts && texts.causal();
    }

    /** The labels that are trained on; null where examples have none, as texts. */
    Labels labels() {
      return training instanceof Examples.Labelled rows ? rows.labels() : null;
    }
  }

  /**
   * Runs what is left of the plan.
   *
   * @return true when the plan is complete, false when it was stopped
   * @throws NonFiniteLossException where a loss or a gradient is NaN or infinite, naming the tensor
   */
  boolean run(TrainingListener listener);

  /** Asks a run to stop after the step it is at; it returns then. */
  void stop();

  /**
   * Writes everything that {@link #restore} needs to go on: weights, optimizer, masks, scales, a teacher that a stage
   * left, the place in the plan. Not while {@link #run} computes, except from its listener.
   */
  void save(OutputStream out) throws IOException;

  /**
   * Goes on where a saved run of the same plan and job was.
   *
   * @throws org.espalier.InputException where the content is damaged or of another plan or model; this
   *     object must be closed then
   */
  void restore(InputStream in) throws IOException;

  /** The reports of the stages that are complete, those before {@link #restore} included. */
  List<TrainingListener.StageReport> stages();

  /** What became of the weights, in the order of the model. */
  List<LayerReport> layers();

  /** The model as it is given, as training sees it. */
  TrainedForm form();

  /** Which weights stay as they are, and why: a line a reason. */
  List<String> resting();

  /**
   * The model with its present float weights, pruned ones 0; quantization is not in it. Of a model that is int8 as it is
   * given, activations are rounded where it fixes their ranges, which may clip them.
   */
  OnnxModel floatModel();

  /**
   * The model with the float weights that forward reads now: pruned ones 0, quantized ones rounded to their
   * grids. Activations stay float, but of a model that is int8 as it is given, which rounds them as it did.
   */
  OnnxModel roundedModel();

  /**
   * The model that runs: where a stage quantized, with the integers, scales and ranges that training
   * saw; of a model that is int8 as it is given, that model with other integers and floats; else {@link #floatModel}.
   */
  OnnxModel export();

  @Override
  void close();
}
