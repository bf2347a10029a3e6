package org.espalier.recipe;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import org.espalier.format.AtomicFile;

/** Writes a report, for people and for programs. */
final class ReportFiles {
  private ReportFiles() {}

  static void write(ObjectNode report, Path html, Path json) {
    try (AtomicFile page = AtomicFile.create(html);
        AtomicFile data = AtomicFile.create(json)) {
      page.write(ByteBuffer.wrap(ReportPage.of(report).getBytes(StandardCharsets.UTF_8)));
      data.write(
          ByteBuffer.wrap(
              new ObjectMapper()
                  .enable(SerializationFeature.INDENT_OUTPUT)
                  .writeValueAsBytes(report)));
      AtomicFile.commitAll(List.of(page, data));
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("the report is no JSON", e);
    }
  }
}
