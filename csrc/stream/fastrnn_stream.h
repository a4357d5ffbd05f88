/* Recurrent layers that run a signal chunk by chunk, from C: without Python, without torch, and once a stream is open
 * without allocating memory.
 *
 * A stream holds float32 layers of one direction, whose weights are packed once, and the state of a batch of samples.
 * `fastrnn.Stream(module).save(path)` writes the file that it is opened from. Every call is on one thread, and takes
 * denormal numbers for zero. A forked child goes on with its copy of a stream, unless another thread ran it in that
 * moment: to the child it stays busy. */
#ifndef FASTRNN_STREAM_H
#define FASTRNN_STREAM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FASTRNN_STREAM_API __attribute__((visibility("default")))
#else
#define FASTRNN_STREAM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fastrnn_stream fastrnn_stream;

/* What a call returns. */
enum {
  FASTRNN_STREAM_OK = 0,
  FASTRNN_STREAM_ERROR = 1, /* fastrnn_stream_error says which */
  FASTRNN_STREAM_BUSY = 2   /* another thread runs this stream now */
};

/* Opens a file for a batch of samples, whose states are zero. At most so many steps run at once: a longer chunk is cut.
 * batch times most_steps is at most 2^24. Returns null where the file is no stream, is damaged, or does not fit into
 * memory. */
FASTRNN_STREAM_API fastrnn_stream* fastrnn_stream_open(const char* path, int64_t batch, int64_t most_steps);

/* The same from the file's bytes, for the kernels of an instruction set; null or empty: the best of this machine. */
FASTRNN_STREAM_API fastrnn_stream* fastrnn_stream_read(const void* data, size_t size, int64_t batch, int64_t most_steps,
                                                       const char* instruction_set);

FASTRNN_STREAM_API void fastrnn_stream_close(fastrnn_stream* stream);

/* Runs a chunk: input [steps, batch, input size] to output [steps, batch, output size], without gaps. The two must not
 * overlap. 0 steps change nothing; fewer are an error. */
FASTRNN_STREAM_API int fastrnn_stream_step(fastrnn_stream* stream, const float* input, int64_t steps, float* output);

/* Sets the state of a sample to zero, or with sample -1 of all. */
FASTRNN_STREAM_API int fastrnn_stream_reset(fastrnn_stream* stream, int64_t sample);

/* Copies the state out or in: h [layers, batch, output size] and c [layers, batch, hidden size]. c may be null, and is
 * not read or written for cells without one. */
FASTRNN_STREAM_API int fastrnn_stream_get_state(fastrnn_stream* stream, float* h, float* c);
FASTRNN_STREAM_API int fastrnn_stream_set_state(fastrnn_stream* stream, const float* h, const float* c);

FASTRNN_STREAM_API int64_t fastrnn_stream_batch(const fastrnn_stream* stream);
FASTRNN_STREAM_API int64_t fastrnn_stream_layers(const fastrnn_stream* stream);
FASTRNN_STREAM_API int64_t fastrnn_stream_input_size(const fastrnn_stream* stream);
FASTRNN_STREAM_API int64_t fastrnn_stream_hidden_size(const fastrnn_stream* stream);
FASTRNN_STREAM_API int64_t fastrnn_stream_output_size(const fastrnn_stream* stream);

/* What went wrong in this thread's last call that failed. */
FASTRNN_STREAM_API const char* fastrnn_stream_error(void);

#ifdef __cplusplus
}
#endif

#endif
