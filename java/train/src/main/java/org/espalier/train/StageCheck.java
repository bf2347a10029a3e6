package org.espalier.train;

import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.Glob;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.OnnxPruner;
import org.espalier.compress.onnx.TrainableQuantizer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.op.MagnitudePrune;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.OnnxGraph;

/** Checks that what a stage asks for, its loss above all, is there: labels of the right kind, examples, tables. */
final class StageCheck {
  private final Compression.Job job;
  private final TrainedForm form;

  /**
   * @param form of the job's model
   */
  StageCheck(Compression.Job job, TrainedForm form) {
    this.job = job;
    this.form = form;
  }

  /**
   * Checks what can be said before the model is opened.
   *
   * @return the names of weights, less tables, that only this stage leaves as they are
   * @throws InputException that names the stage
   */
  List<String> check(Stage stage) {
    String where = "stage " + stage.name() + ": ";
    Objective objective = stage.training().objective();
    boolean embeds = job.training() instanceof Examples.Texts && !job.isCausal();
    if (objective.isForEmbeddings() != embeds) {
      throw new InputException(
          where
              + (embeds
                  ? "texts train the parts embedding, similarity and hidden"
                  : "examples of one shape train the parts labels, logits, bound and output, and"
                      + " texts for causal language models labels, logits and bound"));
    }
    if (job.isCausal()) {
      checkFollowing(where, objective);
    } else if (!embeds) {
      checkLabels(where, objective);
    }
    if (form.isInt8()) {
      checkInt8(where, stage);
    }
    if (stage instanceof Stage.Prune p && p.pruning().refit() && job.calibration() == null) {
      throw new InputException(where + "refitting needs calibration examples");
    }
    if (stage instanceof Stage.Quantize q) {
      boolean fixed = q.quantization().form() == Quantization.Form.STATIC;
      if ((q.quantization().fit() || fixed) && job.calibration() == null) {
        throw new InputException(
            where + (fixed ? "static ranges need" : "fitting needs") + " calibration examples");
      }
    }
    try {
      return tryOn(stage);
    } catch (InputException e) {
      throw new InputException(where + e.getMessage(), e);
    }
  }

  /** Plans what the stage does to the model. */
  private List<String> tryOn(Stage stage) {
    if (stage instanceof Stage.Quantize q) {
      TrainableQuantizer tried = q.quantization().quantizer(form.floats());
      if (tried instanceof BlockQuantizer blocks && q.quantization().weights().size() > 0) {
        blocks.requireRoom(q.quantization().most(job.model()));
      }
    }
    int rank = TrainedModel.rank(stage);
    return rank == 0 ? List.of() : new LowRank(form.floats(), rank).resting();
  }

  private void checkInt8(String where, Stage stage) {
    if (stage instanceof Stage.Quantize) {
      throw new InputException(
          where
              + job.model().name()
              + " is int8 already and is trained as that; leave the stage out, or start from the"
              + " float model that it was made of");
    }
    if (stage instanceof Stage.Prune p && p.pruning().refit()) {
      throw new InputException(
          where
              + "refit solves for floats, and "
              + job.model().name()
              + " is int8 already; leave refit out, which prunes by magnitude, or start from the"
              + " float model that it was made of");
    }
    if (TrainedModel.rank(stage) > 0) {
      throw new InputException(
          where
              + "low-rank adds to weights of floats, and the model is int8; leave it out, or start"
              + " from the float model");
    }
  }

  private static void checkFollowing(String where, Objective objective) {
    if (objective.output() > 0) {
      throw new InputException(
          where
              + "its loss has output, which is for examples of one shape; loss {logits: 1} follows"
              + " the teacher of a language model");
    }
  }

  private void checkLabels(String where, Objective objective) {
    Labels validation = ((Examples.Labelled) job.validation()).labels();
    boolean numbers = job.labels() instanceof Labels.Numbers;
    boolean ofTokens = job.labels() instanceof Labels.TokenClasses;
    if (validation != null && ofTokens != validation instanceof Labels.TokenClasses
        || job.labels() instanceof Labels.Numbers trained
            && !(validation instanceof Labels.Numbers validated
                && validated.width() == trained.width())) {
      throw new InputException("training and validation labels are of different kinds");
    }
    if (objective.labels() > 0 && (job.labels() == null || validation == null)) {
      throw new InputException(
          where
              + "its loss has labels, and the examples have none; loss {output: 1} and {logits: 1}"
              + " follow the teacher alone");
    }
    if (objective.labels() > 0 && objective.output() > 0 && !numbers) {
      throw new InputException(
          where
              + "its loss has output beside labels, which is for labels that are numbers; these are"
              + " classes, and loss {labels: 0.5, logits: 0.5} follows the teacher too");
    }
    if (numbers && objective.isForLogits(job.labels())) {
      throw new InputException(
          where
              + "its loss has logits or bound, which are for classes; these labels are numbers, and"
              + " loss {labels: 0.5, output: 0.5} follows the teacher too");
    }
  }

  /**
   * Checks that the embedding tables that a stage names are the model's.
   *
   * @throws InputException that names the stage and the tables that there are
   */
  void checkTables(Stage stage, OnnxGraph graph) {
    List<String> tables =
        graph.parameters().stream()
            .filter(p -> p.kind() == Parameter.Kind.EMBEDDING)
            .map(Parameter::name)
            .toList();
    for (Glob glob : stage.training().embeddings().tables()) {
      if (tables.stream().noneMatch(glob)) {
        throw new InputException(
            "stage "
                + stage.name()
                + ": train-embeddings: '"
                + glob.text()
                + "' is neither auto, always or never nor one of the tables that "
                + job.model().name()
                + " only looks up in, "
                + tables);
      }
    }
  }

  /**
   * Checks that there are weights that a stage prunes, and that they have its pattern.
   *
   * @throws InputException that names the stage or the weight
   */
  void checkPruned(Stage.Prune stage, List<TrainedWeight> candidates) {
    Pruning pruning = stage.pruning();
    if (candidates.isEmpty()) {
      throw new InputException(
          "stage "
              + stage.name()
              + ": "
              + job.model().name()
              + " has no weights that the plan could prune"
              + (OnnxWeights.inner(form.floats(), false).stream().anyMatch(pruning.include())
                  ? " but those in branches of If and bodies of loops, which training leaves as"
                      + " they are; 'espalier prune' takes them"
                  : ""));
    }
    if (pruning.pattern() != null) {
      MagnitudePrune.Pattern pattern = (MagnitudePrune.Pattern) pruning.rule(0);
      MagnitudePrune.checkPattern(
          candidates.stream()
              .map(
                  w ->
                      MagnitudePrune.Weights.of(w.name(), w.latent().tensor())
                          .axis(w.parameter.reductionAxis()))
              .toList(),
          pattern);
      Set<String> names = candidates.stream().map(TrainedWeight::name).collect(Collectors.toSet());
      OnnxModel floats = form.floats();
      OnnxWeights.of(floats).stream()
          .filter(weight -> names.contains(weight.name()))
          .forEach(weight -> OnnxPruner.checkGroups(floats, weight, pattern));
    }
  }
}
