package org.espalier.torch;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.store.ModelDiff;

/** Compares two TorchScript files by taking them apart into their parameters and all else. */
final class ScriptDiff {
  private static final long CHUNK = 1 << 20;

  private ScriptDiff() {}

  /** See {@link TorchScriptModel#diff}. */
  static ModelDiff of(Path before, Path after) {
    try {
      Path folder = Files.createTempDirectory("espalier");
      try {
        Path first = folder.resolve("before.safetensors");
        Path second = folder.resolve("after.safetensors");
        boolean same = takeApart(before, first).equals(takeApart(after, second));
        return new ModelDiff(
            ModelDiff.of(first, second).layers(),
            same ? List.of() : List.of("code, buffers or constants: differ"));
      } finally {
        FileTree.delete(folder);
      }
    } catch (IOException e) {
      throw InputException.of("cannot write temporary files to compare " + before, e);
    }
  }

  /** Writes the parameters of a file as safetensors and returns a digest of what is left. */
  private static String takeApart(Path file, Path weights) throws IOException {
    try (TorchScriptModel model = TorchScriptModel.read(file);
        AtomicFile out = AtomicFile.create(weights)) {
      List<TensorSpec> specs = new ArrayList<>();
      for (Parameter p : model.parameters()) {
        List<Long> shape = Arrays.stream(p.tensor().sizes().vec().get()).boxed().toList();
        specs.add(new TensorSpec(p.name(), SafetensorsDtype.F32, shape));
      }
      SafetensorsWriter writer = new SafetensorsWriter(out, specs, Map.of());
      for (Parameter p : model.parameters()) {
        long bytes = 4 * p.tensor().numel();
        BytePointer memory = new BytePointer(TensorView.of(p.tensor()).pointer());
        for (long at = 0; at < bytes; at += CHUNK) {
          long count = Math.min(CHUNK, bytes - at);
          writer.append(p.name(), memory.position(at).limit(at + count).asByteBuffer());
        }
        Pointer.memset(memory.position(0), 0, bytes);
      }
      writer.finish();
      out.commit();
      Path rest = weights.resolveSibling("rest.pt");
      model.save(rest);
      return ScriptArchive.contentHash(rest);
    }
  }
}
