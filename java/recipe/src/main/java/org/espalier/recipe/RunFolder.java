package org.espalier.recipe;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;

/**
 * The folder that a run writes to. While it runs, {@code run/} in it holds its state; {@code report.json} is there once it is
 * complete.
 */
final class RunFolder {
  private static final String CHECKPOINT = "checkpoint";
  private static final String TEACHER_CACHE = "teacher";
  private static final String LOCK = "lock";

  private final Path path;

  /** The folder of the run's state. */
  private final Path state;

  RunFolder(Path path) {
    this.path = path;
    this.state = path.resolve("run");
  }

  /** A file or folder in it. */
  Path resolve(String name) {
    return path.resolve(name);
  }

  /** The name of a file, seen from the folder. */
  String name(Path file) {
    return path.relativize(file).toString();
  }

  Path state() {
    return state;
  }

  Path checkpoint() {
    return state.resolve(CHECKPOINT);
  }

  Path teacherCache() {
    return state.resolve(TEACHER_CACHE);
  }

  Path reportJson() {
    return path.resolve(RecipeRun.REPORT_JSON);
  }

  Path reportHtml() {
    return path.resolve(RecipeRun.REPORT_HTML);
  }

  boolean exists() {
    return Files.exists(path);
  }

  boolean isComplete() {
    return Files.exists(reportJson());
  }

  /** Makes the folder of the run's state and holds it. */
  RunLock lock() {
    FileTree.createFolder(state);
    return new RunLock(state.resolve(LOCK));
  }

  /** Checks that a complete run is of the recipe; it is no answer to another one. */
  void requireRunOf(Recipe recipe) {
    JsonNode of;
    try {
      of = new ObjectMapper().readTree(Files.readAllBytes(reportJson())).path("recipe");
    } catch (JsonProcessingException e) {
      throw new InputException(reportJson() + " is damaged; name a new folder", e);
    } catch (IOException e) {
      throw InputException.of("cannot read " + reportJson(), e);
    }
    List<String> overrides = new ArrayList<>();
    of.path("set").forEach(set -> overrides.add(set.asText()));
    if (!of.path("text").asText().equals(recipe.text()) || !overrides.equals(recipe.overrides())) {
      throw new InputException(
          path
              + " holds the complete run of another recipe or of other --set options; name a new"
              + " folder");
    }
  }

  /**
   * Checks that a run can be written to the folder.
   *
   * @param resume whether it may hold one that is not complete
   */
  void check(boolean resume) {
    boolean exists = Files.exists(path, LinkOption.NOFOLLOW_LINKS);
    Path into = exists ? path : path.toAbsolutePath().normalize().getParent();
    if (exists && !Files.isDirectory(path)) {
      throw new InputException("cannot write " + path + ": it exists and is not a folder");
    }
    if (into == null || !Files.isDirectory(into)) {
      throw new InputException("cannot write " + path + ": the folder " + into + " does not exist");
    }
    if (!Files.isWritable(into)) {
      throw new InputException(
          "cannot write " + path + ": the folder " + into + " is not writable");
    }
    if (exists) {
      checkContent(resume);
    }
  }

  private void checkContent(boolean resume) {
    if (Files.exists(checkpoint())) {
      if (!resume) {
        throw new InputException(
            path
                + " holds a run that is not complete; --resume goes on with it, or name a new"
                + " folder");
      }
      return;
    }
    try (Stream<Path> content = Files.list(path)) {
      // A run that was killed before its first checkpoint left nothing worth keeping.
      if (content.anyMatch(file -> !file.equals(state))) {
        throw new InputException(
            "cannot write " + path + ": the folder is not empty; name a new one");
      }
    } catch (IOException e) {
      throw InputException.of("cannot read " + path, e);
    }
  }

  /** Deletes what a process left half written when it was killed. */
  void deleteLeftovers() {
    try (Stream<Path> content = Files.list(path)) {
      content.filter(AtomicFile::isTemporary).forEach(RunFolder::delete);
    } catch (IOException e) {
      throw InputException.of("cannot read " + path, e);
    }
  }

  void deleteState() {
    delete(state);
  }

  void delete() {
    delete(path);
  }

  /** Deletes a file or a folder with all that it holds. */
  static void delete(Path root) {
    try {
      FileTree.delete(root);
    } catch (IOException e) {
      throw InputException.of("cannot delete " + root, e);
    }
  }
}
