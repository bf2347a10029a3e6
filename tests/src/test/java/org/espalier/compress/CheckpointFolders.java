package org.espalier.compress;

import java.nio.file.Path;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.io.TempDir;

/** The folders of a test that reads a checkpoint and writes another. */
abstract class CheckpointFolders {
  @TempDir Path folder;

  /** Where the checkpoint is read. */
  Path model;

  /** Where the other is written. */
  Path target;

  @BeforeEach
  void names() {
    model = folder.resolve("model");
    target = folder.resolve("out");
  }
}
