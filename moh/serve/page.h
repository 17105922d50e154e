// page.html, which the server shows to a browser at `/`, as a string.
#pragma once

namespace moh::serve {

extern const char* const kPage;

}  // namespace moh::serve
