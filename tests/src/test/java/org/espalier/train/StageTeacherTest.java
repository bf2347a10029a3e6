package org.espalier.train;

import static org.espalier.train.StoppedRuns.bytes;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallDecoder;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** The teacher of stages that follow one which learned something new is the model as that left it. */
class StageTeacherTest {
  private static final TrainingListener SILENT = new TrainingListener() {};
  private static final int CLASSES = 4;

  @TempDir Path folder;

  /** Models whose outputs are taught in different ways. */
  enum Kind {
    CLASSES {
      @Override
      Compression.Job job(OnnxModel teacher, Path cache) {
        return new Compression.Job(
            OnnxCompressionTest.classifier(),
            teacher,
            OnnxCompressionTest.points(512, 2),
            OnnxCompressionTest.points(128, 3),
            Pooling.MEAN,
            null,
            cache);
      }
    },
    /** One logit an example, of rows that are looked up in tables, which are trained too. */
    TABLES {
      @Override
      Compression.Job job(OnnxModel teacher, Path cache) {
        Compression.Job job = EmbeddingTrainingTest.job(EmbeddingTrainingTest.clicks(), teacher);
        return new Compression.Job(
            job.model(), teacher, job.training(), job.validation(), Pooling.MEAN, null, cache);
      }
    },
    /** The teacher answers batch by batch; the table is the last product too. */
    TOKENS {
      @Override
      Compression.Job job(OnnxModel teacher, Path cache) {
        return new Compression.Job(
            OnnxModel.of(SmallDecoder.tied(1, 50, 16, 1), "tied"),
            teacher,
            CausalTrainingTest.counting(64, 1),
            CausalTrainingTest.counting(16, 2),
            Pooling.MEAN,
            null,
            cache);
      }
    };

    abstract Compression.Job job(OnnxModel teacher, Path cache);
  }

  private static Training training(long steps, Objective objective) {
    return new Training(
        steps, 0, 16, Optimizer.AdamW.of(2e-2), Training.Schedule.constant(), objective, 5);
  }

  private static Training taught(long steps) {
    return training(steps, Objective.ofLogits(0.5, 2));
  }

  private static Stage.Train tuned(String name, boolean teaches) {
    return new Stage.Train(name, training(40, Objective.ofLabels()), teaches);
  }

  private static CompressionPlan plan(boolean teaches) {
    Pruning gradual =
        new Pruning(
            0.6,
            Pruning.Scope.GLOBAL,
            null,
            Pruning.Schedule.CUBIC,
            3,
            0.75,
            name -> true,
            false,
            false);
    return new CompressionPlan(
        List.of(
            tuned("tune", teaches),
            new Stage.Prune("prune", gradual, taught(10)),
            new Stage.Quantize("quantize", Quantization.dynamic().withFit(false), taught(8)),
            new Stage.Train("follow", taught(6))),
        7);
  }

  private static byte[] exported(CompressionPlan plan, Compression.Job job) {
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      return bytes(c.export());
    }
  }

  /** Behind the stage all are as where the model that it left is named as the teacher. */
  @ParameterizedTest
  @EnumSource(Kind.class)
  void whatAStageLeftTeachesAsThatModelWouldFromAFile(Kind kind) {
    OnnxModel left;
    CompressionPlan first = new CompressionPlan(List.of(tuned("tune", true)), 7);
    try (OnnxCompression c = new OnnxCompression(first, kind.job(null, null))) {
      assertTrue(c.run(SILENT));
      left = c.floatModel();
    }
    assertFalse(Arrays.equals(bytes(kind.job(null, null).model()), bytes(left)), "it learned");
    byte[] named = exported(plan(true), kind.job(left, null));
    assertArrayEquals(named, exported(plan(true), kind.job(null, null)));
    assertFalse(Arrays.equals(named, exported(plan(false), kind.job(null, null))), "the original");
  }

  @ParameterizedTest
  @EnumSource(Kind.class)
  void aStoppedRunContinuesToTheSameBits(Kind kind) throws IOException {
    byte[] whole = exported(plan(true), kind.job(null, null));
    Path cache = folder.resolve("cache");
    CompressionPlan plan = plan(true);
    Set<Path> before = OnnxCompressionTest.teacherFiles();
    for (Stage stage : plan.stages()) {
      for (Path kept : new Path[] {null, cache}) {
        assertArrayEquals(
            whole, StoppedRuns.exported(plan, kind.job(null, kept), stage, 4), stage.name());
      }
    }
    assertEquals(before, OnnxCompressionTest.teacherFiles(), "what lies there goes with its run");
    try (var files = Files.list(cache)) {
      List<Path> models = files.filter(file -> file.toString().endsWith(".onnx")).toList();
      assertEquals(1, models.size(), "the same is found again: " + models);
    }
  }

  /** A teacher is asked of what its own stages use, once. */
  @Test
  void eachTeacherIsAskedOfItsOwnExamples() throws IOException {
    Stage first = new Stage.Train("first", taught(3), true);
    Stage second = new Stage.Train("second", taught(5));
    Stage third = new Stage.Train("third", training(4, Objective.ofLabels()), true);
    CompressionPlan plan = new CompressionPlan(List.of(first, second, third), 7);
    Path cache = folder.resolve("cache");
    Compression.Job job = Kind.CLASSES.job(null, cache);
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertFalse(c.run(StoppedRuns.until(second, 2)));
      c.save(saved);
    }
    List<Long> asked = new ArrayList<>();
    int models = 0;
    try (var files = Files.list(cache)) {
      for (Path file : files.toList()) {
        if (file.toString().endsWith(".f32")) {
          asked.add(Files.size(file) / (4 * CLASSES));
        } else if (file.toString().endsWith(".onnx")) {
          models++;
        }
      }
    }
    asked.sort(null);
    assertEquals(List.of(3 * 16L, 5 * 16L, 128L, 128L), asked);
    assertEquals(1, models, "the third teaches nobody");
    List<String> notes = new ArrayList<>();
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      c.restore(new ByteArrayInputStream(saved.toByteArray()));
      TrainingListener noting =
          new TrainingListener() {
            @Override
            public void note(String text, long done, long total) {
              notes.add(text);
            }
          };
      assertTrue(c.run(noting));
    }
    assertEquals(List.of(), notes, "what the teacher said is found again");
  }

  /** A model that was pruned and then learned more teaches with its zeros. */
  @Test
  void theLastStageThatLearnedTeaches() {
    Stage prune = new Stage.Prune("prune", Pruning.oneShot(0.5), Training.none());
    Stage follow = new Stage.Train("follow", taught(1));
    CompressionPlan plan =
        new CompressionPlan(
            List.of(follow, tuned("one", true), prune, tuned("two", true), tuned("no", false)), 7);
    List<String> teachers = new ArrayList<>();
    for (int i = 0; i < plan.stages().size(); i++) {
      Stage teacher = plan.teacherOf(i);
      teachers.add(teacher == null ? null : teacher.name());
    }
    assertEquals(Arrays.asList(null, null, "one", "one", "two"), teachers);
    CompressionPlan before =
        new CompressionPlan(
            List.of(prune, tuned("two", true), new Stage.Train("on", taught(4))), 7);
    try (OnnxCompression c = new OnnxCompression(before, Kind.CLASSES.job(null, null))) {
      assertTrue(c.run(SILENT));
      // It begins as its teacher: of its loss nothing but the share of the labels is left.
      double labels = c.stages().get(1).after().loss();
      assertEquals(0.5 * labels, c.stages().get(2).before().loss(), 1e-6);
    }
  }

  @Test
  void aSavedRunIsOfAPlanWithTheSameTeachers() throws IOException {
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan(true), Kind.CLASSES.job(null, null))) {
      c.save(saved);
    }
    try (OnnxCompression c = new OnnxCompression(plan(false), Kind.CLASSES.job(null, null))) {
      ByteArrayInputStream in = new ByteArrayInputStream(saved.toByteArray());
      assertThrows(InputException.class, () -> c.restore(in));
    }
  }

  /** As where a disk lost what it said it had written. */
  @ParameterizedTest
  @ValueSource(strings = {".onnx", ".onnx.data"})
  void aStoredTeacherThatWasDamagedIsWrittenAnew(String ending) throws IOException {
    Path cache = folder.resolve("cache");
    Compression.Job job = Kind.CLASSES.job(null, cache);
    byte[] whole = exported(plan(true), job);
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan(true), job)) {
      assertFalse(c.run(StoppedRuns.until(plan(true).stages().get(1), 2)));
      c.save(saved);
    }
    try (var files = Files.list(cache)) {
      for (Path file : files.filter(f -> f.toString().endsWith(ending)).toList()) {
        Files.write(file, new byte[(int) Files.size(file) - 1]);
      }
    }
    try (OnnxCompression c = new OnnxCompression(plan(true), job)) {
      c.restore(new ByteArrayInputStream(saved.toByteArray()));
      assertTrue(c.run(SILENT));
      assertArrayEquals(whole, bytes(c.export()));
    }
  }

  @Test
  void aTeacherThatCannotBeStoredIsTold() throws IOException {
    Path notAFolder = Files.writeString(folder.resolve("file"), "x");
    CompressionPlan plan = plan(true);
    try (OnnxCompression c = new OnnxCompression(plan, Kind.CLASSES.job(null, notAFolder))) {
      InputException e = assertThrows(InputException.class, () -> c.run(SILENT));
      assertTrue(e.getMessage().contains(notAFolder.toString()), e.getMessage());
    }
  }
}
