package org.espalier.torch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.bytedeco.javacpp.Loader;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;

class LibtorchTest {
  /**
   * Each class of the presets looks for libraries when it is initialized. (libcudart tells nothing here: the
   * tokenizers load it too.)
   */
  @Test
  void oneForTheCpuLoadsNothingOfCuda() throws IOException {
    String gpu = "/org/bytedeco/pytorch/" + Loader.getPlatform() + "-gpu/libtorch.so";
    assumeTrue(torch.class.getResource(gpu) == null, "libtorch is the one for GPUs");
    Libtorch.load();
    new IValue(new Scalar(1)).close();
    List<String> cuda =
        Files.readAllLines(Path.of("/proc/self/maps")).stream()
            .filter(line -> line.matches(".*/lib(cupti|cublas|cudnn)\\b.*"))
            .toList();
    assertEquals(List.of(), cuda);
  }
}
