package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.PipedInputStream;
import java.io.PipedOutputStream;
import java.nio.charset.Charset;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class LineReaderTest {
  /** All lines of some bytes that come in pieces of a size. */
  private static List<LineReader.Line> lines(byte[] bytes, int piece, int limit)
      throws IOException {
    InputStream in = new ByteArrayInputStream(bytes);
    LineReader reader = new LineReader("it", b -> in.read(b, 0, piece), limit);
    List<LineReader.Line> lines = new ArrayList<>();
    for (LineReader.Line line = reader.next(); line != null; line = reader.next()) {
      lines.add(line);
    }
    assertTrue(reader.isAtEnd());
    LineReader.Line rest = reader.rest();
    if (rest != null) {
      lines.add(rest);
    }
    return lines;
  }

  private static List<String> texts(String text, int piece) throws IOException {
    return lines(text.getBytes(StandardCharsets.UTF_8), piece, 100).stream()
        .map(LineReader.Line::text)
        .toList();
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2, 3, 100})
  void lineEndsOfAllSystemsEndLines(int piece) throws IOException {
    List<String> expected = List.of("a", "", "bc", "d");
    for (String end : List.of("\n", "\r\n", "\r")) {
      assertEquals(expected, texts(String.join(end, expected), piece));
      assertEquals(expected, texts(String.join(end, expected) + end, piece));
      assertEquals(expected, texts("\ufeff" + String.join(end, expected), piece));
    }
    assertEquals(List.of(), texts("", piece));
    assertEquals(List.of("\u0000", "é€𝄞"), texts("\u0000\né€𝄞", piece));
  }

  @Test
  void whatCannotBeUsedIsMarkedAndTheRestIsRead() throws IOException {
    byte[] bytes = "good\n..............bad\nb?d\ngood".getBytes(StandardCharsets.UTF_8);
    bytes[24] = (byte) 0xff;
    List<LineReader.Line> lines = lines(bytes, 5, 10);
    assertEquals(4, lines.size());
    assertNull(lines.get(0).problem());
    assertEquals("..........", lines.get(1).text());
    assertEquals("the line has more than 10 bytes", lines.get(1).problem());
    assertEquals("it is not UTF-8", lines.get(2).problem());
    assertEquals(4, lines.get(3).number());
    assertNull(lines.get(3).problem());
    // The character that stands for what was no UTF-8 may also have been written by somebody.
    assertNull(lines("\ufffd".getBytes(StandardCharsets.UTF_8), 5, 10).get(0).problem());
  }

  @ParameterizedTest
  @ValueSource(strings = {"UTF-16", "x-UTF-16LE-BOM"})
  void wideCharactersAreRefused(String name) {
    byte[] bytes = "{}\n{}\n".getBytes(Charset.forName(name));
    InputException e = assertThrows(InputException.class, () -> lines(bytes, 100, 100));
    assertTrue(e.getMessage().contains("it is UTF-16"), e.getMessage());
  }

  @Test
  void aLookAheadTakesNothing() throws IOException {
    InputStream in = new ByteArrayInputStream("a\nb\nc".getBytes(StandardCharsets.UTF_8));
    LineReader reader = new LineReader("it", in::read, 100);
    assertEquals("b", reader.peek(1, true, () -> false).text());
    assertNull(reader.peek(2, false, () -> false), "a file that grows has no third line yet");
    assertEquals("a", reader.next().text());
    assertEquals("c", reader.peek(1, true, () -> false).text());
    assertEquals("b", reader.next().text());
    assertEquals("c", reader.next().text());
    assertNull(reader.next());
    assertNull(reader.rest());
  }

  /** Whoever waits for a pipe gets an answer, and everything that came. */
  @Test
  void aPipeThatIsSilentDoesNotBlock() throws IOException {
    try (PipedOutputStream out = new PipedOutputStream();
        PipedInputStream in = new PipedInputStream(out)) {
      LineReader reader = new LineReader("it", new PipeSource(in), 100);
      assertNull(reader.next());
      assertFalse(reader.isAtEnd());
      assertNull(reader.peek(0, true, () -> true), "it was to stop");
      out.write("a\nb".getBytes(StandardCharsets.UTF_8));
      out.flush();
      assertEquals("a", await(reader).text());
      out.close();
      assertNull(await(reader));
      assertEquals("b", reader.rest().text());
      assertNull(reader.next());
      assertTrue(reader.isAtEnd());
    }
  }

  private static LineReader.Line await(LineReader reader) throws IOException {
    LineReader.Line line = reader.next();
    while (line == null && !reader.isAtEnd()) {
      line = reader.next();
    }
    return line;
  }
}
