/* Filters a mono signal in blocks, as an audio plug-in would: raw float32 samples from stdin to stdout.
 *
 *   python -c "import fastrnn; fastrnn.Stream(fastrnn.LSTM(1, 16, proj_size=1)).save('filter.stream')"
 *   stream_filter filter.stream < in.f32 > out.f32
 */
#include <stdio.h>
#include <time.h>

#include "fastrnn_stream.h"

enum { BLOCK = 64 }; /* 1.3 ms at 48 kHz */

static double microseconds(void) {
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return now.tv_sec * 1e6 + now.tv_nsec * 1e-3;
}

int main(int argc, char** argv) {
  float input[BLOCK], output[BLOCK];
  double longest = 0, total = 0;
  long blocks = 0;
  size_t count;
  fastrnn_stream* stream;

  if (argc != 2) {
    fprintf(stderr, "usage: %s MODEL < INPUT > OUTPUT\n", argv[0]);
    return 2;
  }
  stream = fastrnn_stream_open(argv[1], 1, BLOCK);
  if (!stream) {
    fprintf(stderr, "%s\n", fastrnn_stream_error());
    return 1;
  }
  if (fastrnn_stream_input_size(stream) != 1 || fastrnn_stream_output_size(stream) != 1) {
    fprintf(stderr, "the model must take one channel and return one\n");
    fastrnn_stream_close(stream);
    return 1;
  }
  while ((count = fread(input, sizeof *input, BLOCK, stdin)) > 0) {
    const double begin = microseconds();
    double taken;
    if (fastrnn_stream_step(stream, input, (int64_t)count, output) != FASTRNN_STREAM_OK) {
      fprintf(stderr, "%s\n", fastrnn_stream_error());
      break;
    }
    taken = microseconds() - begin;
    total += taken;
    longest = taken > longest ? taken : longest;
    ++blocks;
    fwrite(output, sizeof *output, count, stdout);
  }
  fastrnn_stream_close(stream);
  if (blocks)
    fprintf(stderr, "%ld blocks of %d samples, %.1f microseconds each, %.1f at most\n", blocks, BLOCK, total / blocks,
            longest);
  return 0;
}
