package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class MaskFileTest {
  private static final TensorInfo WEIGHTS =
      new TensorInfo("w", SafetensorsDtype.F32, List.of(3L, 4L), 0, 48);
  private static final TensorInfo SCALAR =
      new TensorInfo("s", SafetensorsDtype.F32, List.of(), 48, 52);

  @TempDir Path folder;

  @Test
  void whatIsDeclaredIsRead() {
    List<TensorInfo> weights = List.of(WEIGHTS, SCALAR);
    Map<TensorSpec, byte[]> masks = new LinkedHashMap<>();
    List<TensorSpec> specs = MaskFile.specs(weights);
    masks.put(specs.get(0), new byte[] {(byte) 0xff, 0x0f});
    masks.put(specs.get(1), new byte[] {1});
    Path path = RawSafetensors.write(folder.resolve("m"), MaskFile.metadata(weights), masks);
    try (MaskFile file = MaskFile.open(path)) {
      assertEquals(2, file.masks().size());
      assertEquals(List.of(2L), file.maskOf(WEIGHTS).shape());
      assertEquals(1, file.maskOf(SCALAR).bytes());
      TensorInfo other = new TensorInfo("w", SafetensorsDtype.F32, List.of(4L, 3L), 0, 48);
      InputException e = assertThrows(InputException.class, () -> file.maskOf(other));
      assertTrue(e.getMessage().contains("[3,4]"), e.getMessage());
      assertTrue(e.getMessage().contains("[4, 3]"), e.getMessage());
      assertNull(file.maskOf(new TensorInfo("x", SafetensorsDtype.F32, List.of(), 0, 4)));
    }
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        // format | shape | dtype | bytes of the mask | message
        "espalier-mask | 3,5 | U8 | 2 | bits beyond its 15 weights",
        "espalier-mask | 3,6 | U8 | 2 | U8[3] is right",
        "espalier-mask | 3,4 | I8 | 2 | U8[2] is right",
        "espalier-mask | 3,4 | U8 | 3 | U8[2] is right",
        "espalier-mask | 3,-4 | U8 | 2 | sizes with commas",
        "espalier-mask | 3, | U8 | 2 | sizes with commas",
        "espalier-mask | 3,x | U8 | 2 | sizes with commas",
        "espalier-mask | 99999999999,99999999999 | U8 | 2 | sizes with commas",
        "espalier-mask | 99999999999999999999 | U8 | 2 | sizes with commas",
        "pt | 3,4 | U8 | 2 | not a file of masks",
      })
  void refusesMasksThatDoNotFit(
      String format, String shape, String dtype, int bytes, String message) throws IOException {
    String header =
        "{\"__metadata__\":{\"format\":\"%s\",\"shape:w\":\"%s\"},".formatted(format, shape)
            + "\"w\":{\"dtype\":\"%s\",\"shape\":[%d],\"data_offsets\":[0,%d]}}"
                .formatted(dtype, bytes, bytes);
    byte[] file = RawSafetensors.bytes(header, bytes);
    file[file.length - 1] = (byte) 0x8f;
    Path path = Files.write(folder.resolve("m"), file);
    InputException e = assertThrows(InputException.class, () -> MaskFile.open(path));
    assertTrue(e.getMessage().contains(message), e.getMessage());
    assertTrue(e.getMessage().contains(path.toString()), e.getMessage());
  }

  @Test
  void refusesAMaskWithoutItsShape() throws IOException {
    Path path =
        RawSafetensors.write(
            folder.resolve("m"),
            "{\"__metadata__\":{\"format\":\"espalier-mask\"},"
                + "\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
            1);
    InputException e = assertThrows(InputException.class, () -> MaskFile.open(path));
    assertTrue(e.getMessage().contains("'w' has no shape"), e.getMessage());
  }
}
